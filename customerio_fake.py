# /// script
# requires-python = ">=3.9"
# ///
"""customerio_fake: a local Customer.io for tests. One file, standard library only.

It answers the Track, App and Pipelines APIs of Customer.io on one port, close enough
that the official clients cannot tell, and shows what it was told under `/__parlel/*`.

In a test:

    from customerio_fake import CustomerioServer

    with CustomerioServer(port=0) as cio:
        my_app.configure(track_url=cio.track_url)
        my_app.sign_up("ada@example.com")
        assert cio.events[-1]["name"] == "signup"

Beside an app in any language:

    python customerio_fake.py 4668

The file is read from top to bottom; each section uses only the sections above it.

     1  Errors                  what can go wrong, and what became of a write
     2  Clock and identifiers   time, due work, and ids in Customer.io's own formats
     3  Settings                everything that can be set
     4  Values                  JSON, numbers, and what a field has to be
     5  Liquid                  the template language: text in, text out
     6  Conditions              one grammar for filters, segments and journeys
     7  Records                 what is kept, and what the parts of a workspace stand on
     8  People                  identifiers, attributes, devices: who is who
     9  Events, objects and segments  what happens, and what people belong to
    10  Deliveries              what was sent, and what became of it
    11  Workspace               the holder of its parts: one lock, one way in, one agenda
    12  Rendering               a message as its recipient sees it
    13  Sending                 transactional messages, broadcasts, newsletters
    14  Journeys                campaigns that run: who enters, what they go through
    15  Webhooks                reporting webhooks: signed, in order, tried again
    16  Exports and imports     a workspace out of and into files
    17  Seeding                 what people make in the web app, as one JSON document
    18  Requests                requests, answers, credentials, faults, the route table
    19  Track API               /api/v1 and /api/v2
    20  App API                 /v1, Bearer
    21  Design Studio, assets and live notifications  the newest part of the App API
    22  Pipelines API           /v1/identify, track, page, screen, group, alias, batch
    23  Control                 /__parlel/*, for the test that drives us
    24  Snapshots               a workspace as one JSON document, and back
    25  JavaScript              a client for tests in Node and in browsers, and its types
    26  Server                  HTTP on the wire
    27  Beside the real service  a workspace elsewhere, read into a seed
    28  Public face             CustomerioServer and the command line

Rules are taken from, in this order: what was observed of the live service ("observed"),
the official API description ("reference"), the documentation ("docs"), and where all are
silent, inference ("inferred"). Comments name the source.

(PYTEST_DONT_REWRITE: there are no asserts of tests in here.)
"""

from __future__ import annotations

import base64
import binascii
import bisect
import collections.abc
import contextlib
import csv
import errno
import functools
import hashlib
import heapq
import hmac
import inspect
import io
import ipaddress
import json
import logging
import math
import operator
import os
import re
import selectors
import socket
import socketserver
import struct
import sys
import threading
import time
import weakref
import zlib
from collections import deque
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from email.utils import formatdate, getaddresses, parseaddr
from html import escape, unescape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Callable,
    Deque,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Literal,
    Mapping,
    Match,
    NamedTuple,
    NoReturn,
    Optional,
    Pattern,
    Protocol,
    Sequence,
    Set,
    Tuple,
    Type,
    TypedDict,
    TypeVar,
    Union,
    cast,
    overload,
)
from urllib.parse import (
    parse_qsl,
    quote,
    quote_plus,
    unquote,
    unquote_plus,
    urlencode,
    urljoin,
    urlsplit,
)

if sys.version_info < (3, 9):  # noqa: UP036 - else it would fail later, and in riddles
    _ending = SystemExit if __name__ == "__main__" else ImportError
    raise _ending(f"customerio_fake needs Python 3.9 or newer; this is {sys.version.split()[0]}")
if TYPE_CHECKING:
    import ssl
    from http.client import HTTPResponse

__all__ = ["ApiError", "CustomerioServer", "CustomerioTests", "Settings", "main"]
__version__ = "1.0.0"
__unittest = True  # so that unittest shows the line of the test, not ours

#: Everything the fake has to say goes to this logger; silent unless the host configures it.
log = logging.getLogger("customerio_fake")
log.addHandler(logging.NullHandler())

Json = Any
Attributes = Dict[str, Any]
#: The kind of an identifier and its value: ("email", "ada@example.com").
Identifier = Tuple[str, str]


# ======================================================================================
# ==== §1 Errors
# ======================================================================================


class Problem(NamedTuple):
    """One thing wrong with a request: a sentence, and where the machine-readable part belongs.

    `reason` is one of Track v2's `required`, `invalid`, `parse_error` (reference).
    """

    message: str
    field: str = ""
    reason: str = "invalid"
    batch_index: Optional[int] = None


class ApiError(Exception):
    """Raised anywhere to answer with an HTTP error; made into bytes in one place only.

    `status` is the HTTP status, `problems` at least one Problem (or plain sentence),
    `headers` extra response headers. `close` ends the connection after the answer, for
    requests whose end cannot be found.
    """

    def __init__(
        self,
        status: int,
        *problems: Union[str, Problem],
        headers: Sequence[Tuple[str, str]] = (),
        close: bool = False,
    ) -> None:
        self.status = status
        self.problems = [p if isinstance(p, Problem) else Problem(p) for p in problems]
        self.headers = tuple(headers)
        self.close = close
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """All sentences as one line."""
        return "; ".join(problem.message for problem in self.problems)


def invalid(message: str, field: str = "", reason: str = "invalid") -> ApiError:
    """Make a 400 about one field, for the caller to raise."""
    return ApiError(400, Problem(message, field, reason))


def required(name: str, expected: str = "a value") -> ApiError:
    """A 400 for a field that is missing or empty."""
    return invalid(f"{name} is required: send {expected}", name, "required")


def spelt_alike(wrong: str, known: Iterable[str], most: int, alike: float = 0.5) -> List[str]:
    """Those of the known words that come nearest to a wrong one, the nearest first.

    Only the dozen with the most letters and pairs of letters in common is compared: a
    comparison takes as long as sixty of these looks.
    """
    import difflib

    wrong = wrong[:200]
    mine = _traits(wrong)
    near = heapq.nlargest(12, known, lambda word: _likeness(mine, _traits(word)))
    return difflib.get_close_matches(wrong, near, n=most, cutoff=alike)


@functools.lru_cache(1024)
def _traits(word: str) -> FrozenSet[Any]:
    return frozenset([*word, *zip(word, word[1:])])


def _likeness(mine: FrozenSet[Any], its: FrozenSet[Any]) -> float:
    return len(mine & its) / (len(mine) + len(its) or 1)


def suggestion(wrong: str, known: Sequence[str], most: int = 1) -> str:
    """A word of help for what is not among the known: the nearest of those, else all."""
    near = spelt_alike(wrong, known, most)
    return (
        f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"
    )


def joined(*sentences: str) -> str:
    """Those of the sentences that aren't empty as one."""
    return "; ".join([sentence for sentence in sentences if sentence])


class Outcome(NamedTuple):
    """What became of a write that is answered with success: of what kind, and in words.

    `done` as asked, `partial` but for what the text says, or not at all: `suppressed`, `unknown`
    (there is nothing of this name), `needless` (it was so before) or `invalid`.
    """

    kind: str
    text: str = ""


DONE = Outcome("done")
SUPPRESSED = Outcome(
    "suppressed", "suppressed: this person is suppressed, so the call was ignored; unsuppress first"
)
UNKNOWN_CIO_ID = Outcome(
    "unknown", "unknown cio_id: no person has it (any more), so the call was ignored"
)
NO_PERSON = Outcome(
    "unknown", "unknown person: nobody has this identifier, so there was nothing to do"
)
NOT_CREATED = Outcome(
    "unknown", "failed_attribute_change: _update is true and nobody has this identifier"
)
DUPLICATE = Outcome("needless", "duplicate event id: an event with this id is already there")
NO_DEVICE = Outcome("unknown", "unknown device: this person has no device with this token")
NO_DELIVERY = Outcome("unknown", "unknown delivery: none has this delivery_id")
NO_OBJECT = Outcome("unknown", "unknown object: there is none with this identifier")
NOT_RELATED = Outcome("unknown", "unknown relationship: this person is not related to this object")
NOT_SUPPRESSED = Outcome("needless", "not suppressed: this identifier was not suppressed")
SAME_PERSON = Outcome("needless", "nothing to merge: primary and secondary are the same person")


def both(*outcomes: Outcome) -> Outcome:
    """Several writes as one: the first that isn't done gives the kind, all give the words."""
    told = [outcome for outcome in outcomes if outcome is not DONE and outcome.text]
    return Outcome(told[0].kind, joined(*[outcome.text for outcome in told])) if told else DONE


def meta_error(error: ApiError) -> Json:
    """401 everywhere, merges and sends: one sentence (observed)."""
    return {"meta": {"error": error.message}}


def meta_errors(error: ApiError) -> Json:
    """Track v1 validation: a list of sentences (observed)."""
    return {"meta": {"errors": [problem.message for problem in error.problems]}}


def problem_list(error: ApiError) -> Json:
    """Track v2: what, where and why (reference). `meta` is ours: the Node client shows it."""
    return {"errors": [_problem_row(p) for p in error.problems], **meta_error(error)}


def _problem_row(problem: Problem) -> Json:
    index = {} if problem.batch_index is None else {"batch_index": problem.batch_index}
    rest = {"reason": problem.reason, "field": problem.field, "message": problem.message}
    return {**index, **rest}


def detail_list(error: ApiError) -> Json:
    """The App API: `status` is a string (observed). `meta` is ours: the Node client shows it."""
    rows = [_detail_row(problem, error.status) for problem in error.problems]
    return {"errors": rows, **meta_error(error)}


def _detail_row(problem: Problem, status: int) -> Json:
    row: Json = {"detail": problem.message, "status": str(status)}
    if problem.field:
        row["source"] = {"pointer": f"/data/attributes/{problem.field}"}
    return row


def pipelines_errors(error: ApiError) -> Json:
    """Pipelines: the Track v2 list; `code` and `message` are what its Python client reads."""
    return {"code": error.status, "message": error.message, **problem_list(error)}


# ======================================================================================
# ==== §2 Clock and identifiers
# ======================================================================================


class Chore(NamedTuple):
    """Work that waits for its time: what to do, by name, and with what.

    Names and plain values, so that a snapshot can hold it and it holds on to nobody.
    """

    name: str
    args: Tuple[Any, ...]


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def moment_of(seconds: float, zone: tzinfo = timezone.utc) -> datetime:
    """The date and time at some Unix seconds. Raises ValueError unless its year is 1 to 9999.

    Calculated, because `fromtimestamp` asks the platform, and Windows knows 1970 to 3000 only.
    """
    try:
        return (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)
    except OverflowError:
        years = min(max(seconds, -1e15), 1e15) // 31_556_952
        raise ValueError(f"year {1970 + years:.0f} is out of range") from None


#: When work is due, which was planned first, and what it is.
Due = Tuple[float, int, Chore]

#: Threads that nobody may keep waiting: the loops of servers.
HURRIED: Set[int] = set()


@contextlib.contextmanager
def hurrying() -> Iterator[None]:
    """Keep nobody waiting in this thread."""
    me = threading.get_ident()
    HURRIED.add(me)
    try:
        yield
    finally:
        HURRIED.discard(me)


class TakesTime(Exception):
    """Raised in a hurried thread by what is for another one, before anything has changed."""


class Clock:
    """The only source of time: the real clock plus an offset, and a queue of what is due.

    Times are Unix seconds. Due work is taken when somebody next looks (`take_due`), in order of
    its time.
    """

    def __init__(self) -> None:
        self._offset = 0.0
        self._frozen: Optional[float] = None
        #: While it is moved ahead, and what becomes due is done at its time.
        self.advancing = False
        self._order = 0
        self._lock = threading.Lock()
        self.queue: List[Due] = []

    def now(self) -> float:
        """The current time, Unix seconds with a fraction."""
        return time.time() + self._offset if self._frozen is None else self._frozen

    def freeze(self, at: Optional[float] = None) -> None:
        """Stop the clock, now or at a time in Unix seconds."""
        self._frozen = self.now() if at is None else at

    def resume(self) -> None:
        """Let a stopped clock go on from where it stands."""
        self.move_to(self.now(), False)

    @property
    def frozen(self) -> bool:
        """Whether the clock stands."""
        return self._frozen is not None

    def move_to(self, when: float, frozen: bool) -> None:
        """Set the clock to Unix seconds, standing or going."""
        self._frozen = when if frozen else None
        self._offset = when - time.time()

    def step(self, target: float, frozen: bool) -> bool:
        """Go on to the next work that is due until `target`, Unix seconds, and stand there.

        Returns False if there was none, and the clock shows the target, standing if `frozen`.
        """
        more = bool(self.queue) and self.queue[0][0] <= target
        when = max(self.queue[0][0], self.now()) if more else target
        self.move_to(when, frozen or more)
        return more

    def at(self, when: float, chore: Chore) -> None:
        """Have `chore` done once the time is `when` (Unix seconds) or later."""
        with self._lock:
            self._order += 1
            heapq.heappush(self.queue, (when, self._order, chore))

    @property
    def pending(self) -> List[Tuple[float, Chore]]:
        """The work that waits for its time, and that time; in the order in which it is due."""
        return [(when, chore) for when, _, chore in sorted(self.queue)]

    @property
    def waits(self) -> bool:
        """Whether any work waits for its time."""
        return bool(self.queue)

    def has_due(self) -> bool:
        """Whether there is any work whose time has come."""
        return bool(self.queue) and self.queue[0][0] <= self.now()

    def take_due(self) -> Optional[Due]:
        """Take the oldest work whose time has come off the queue; None if there is none."""
        with self._lock:
            return heapq.heappop(self.queue) if self.has_due() else None

    def put_back(self, due: Due) -> None:
        """Put work that was taken where it stood."""
        with self._lock:
            heapq.heappush(self.queue, due)


#: The workspace number inside every cio_id and delivery id, and `environment_id` of Track.
WORKSPACE_NUMBER = 104668

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Odd, so n → n·k mod 2^80 repeats no value: ids look random, yet follow from the serial number
# alone and so repeat after a reset.
_SCATTER = 0x9E3779B97F4A7C15F39D
_80_BITS = (1 << 80) - 1


def _varint(number: int) -> bytes:
    """LEB128: seven bits a byte, low ones first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varints(data: bytes) -> Optional[List[int]]:
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return None if shift else numbers


_WORKSPACE_BYTES = _varint(WORKSPACE_NUMBER)
_CIO_ID_PREFIX = _WORKSPACE_BYTES.hex() + "00"


@functools.lru_cache(4096)
def cio_id_of(serial: int) -> str:
    """The cio_id of the person with this serial number (0 is a workspace's first person).

    Hex of workspace, 0, n, n+1 as varints, as decoded from real values (observed, inferred).
    """
    return _CIO_ID_PREFIX + _varint(serial).hex() + _varint(serial + 1).hex()


def serial_of(cio_id: str) -> Optional[int]:
    """The serial number inside a cio_id of this workspace; None if it is not one."""
    numbers = _cio_id_numbers(cio_id)
    if numbers is None or cio_id_of(numbers[2]) != cio_id.lower():
        return None
    return numbers[2]


def bare_cio_id(text: str) -> str:
    """A cio_id without the prefix that it has in the paths of Track."""
    return text[4:] if text.startswith("cio_") else text


def is_foreign(cio_id: str) -> bool:
    """Whether this is another workspace's cio_id (observed), or none at all (field report).

    The real edge refuses both.
    """
    numbers = _cio_id_numbers(cio_id)
    return numbers is None or numbers[0] != WORKSPACE_NUMBER


def _cio_id_numbers(cio_id: str) -> Optional[List[int]]:
    try:
        numbers = _read_varints(bytes.fromhex(cio_id))
    except ValueError:
        return None
    return numbers if numbers and len(numbers) == 4 else None


_SHIFTS = range(125, -1, -5)


def ulid(seconds: float, serial: int) -> str:
    """A ULID (26 characters) of a moment, Unix seconds, and a serial number."""
    number = int(seconds * 1000) << 80 | (serial + 1) * _SCATTER & _80_BITS
    return "".join([_CROCKFORD[number >> shift & 31] for shift in _SHIFTS])


#: The type byte inside a delivery id (inferred from real values).
DELIVERY_KINDS = {"campaign": 1, "newsletter": 3, "broadcast": 3, "transactional": 5}


_DELIVERY_HEADS = {
    kind: b"\x76\x03" + _WORKSPACE_BYTES * 2 + bytes((number, 0))
    for kind, number in DELIVERY_KINDS.items()
}
_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def delivery_id_of(seconds: float, serial: int, kind: str) -> str:
    """A delivery id: URL-safe base64 of a header, the workspace twice, the kind and a ULID."""
    number = int(seconds * 1000) << 80 | serial * _SCATTER & _80_BITS
    text = binascii.b2a_base64(_DELIVERY_HEADS[kind] + number.to_bytes(16, "big"), newline=False)
    return text.translate(_TO_URL_SAFE).decode()


def uuid_of(serial: int) -> str:
    """A UUID, as Design Studio uses them, that follows from a serial number."""
    high, low = serial * _SCATTER & _80_BITS, (serial + 1) * _SCATTER & (1 << 48) - 1
    text = f"{high:020x}{low:012x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def cio_object_id_of(type_id: str, serial: int) -> str:
    """A cio_object_id: `ob`, then workspace, type and sequence as varints (inferred)."""
    return "ob" + (_WORKSPACE_BYTES + _varint(int(type_id)) + _varint(serial)).hex()


# ======================================================================================
# ==== §3 Settings
# ======================================================================================


def _setting(default: Json, help: str, env: str = "", flag: str = "") -> Json:
    return field(default=default, metadata={"help": help, "env": env, "flag": flag})


@dataclass(frozen=True)
class Settings:
    """Everything that can be set: as an argument of CustomerioServer, a flag, or a variable.

    The command line, `--help` and the environment are made from these fields.
    """

    port: int = _setting(4668, "port to listen on; 0 takes a free one", "PORT")
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 for all", "HOST")
    site_id: str = _setting("", "the only Track site id to accept", "CUSTOMERIO_SITE_ID")
    api_key: str = _setting("", "the only Track API key to accept", "CUSTOMERIO_API_KEY")
    app_key: str = _setting("", "the only App API key to accept", "CUSTOMERIO_APP_KEY")
    write_key: str = _setting("", "the only Pipelines write key to accept", "CUSTOMERIO_WRITE_KEY")
    cert: str = _setting("", "PEM file of your own certificate for https (with --key)")
    key: str = _setting("", "PEM file of the certificate's key")
    public_url: str = _setting("", "base URL under which clients reach us, for download links")
    allow_host: str = _setting("", "further Host names that may use /__parlel, comma-separated")
    identifiers: str = _setting("email_or_id", "what identifies people: email_or_id, id or email")
    phone: bool = _setting(False, "phone identifies people, too")
    update_email_by_id: bool = _setting(
        False, "an email may be changed by a call that names the id"
    )
    signing_key: str = _setting("fake-signing-key", "signs reporting webhooks")
    region: str = _setting("us", "data centre to report: us or eu")
    ingest_delay: float = _setting(0.0, "seconds until a Track write can be seen")
    journal: int = _setting(1000, "how many requests are kept for /__parlel/requests")
    deliveries: int = _setting(100_000, "how many deliveries are kept; the oldest go first")
    rate_limits: bool = _setting(False, "answer 429 beyond the published limits of the App API")
    broadcast_limit: bool = _setting(False, "answer 429 to a broadcast's second trigger in 10 s")
    html_404: bool = _setting(False, "answer unknown paths with an HTML page, as the real hosts do")
    strict_fields: bool = _setting(False, "answer 400 to a field that an operation does not have")
    region_check: bool = _setting(
        False, "answer 401 to calls for a customer.io host of another region than --region"
    )
    webhook: str = _setting("", "URL to report everything to, as a reporting webhook")
    seed: str = _setting("", "JSON file that describes the workspace to begin with")
    state: str = _setting("", "JSON file to go on from, if it is there, and to save to at the end")
    max_body: int = _setting(32 << 20, "largest request body in bytes")
    max_threads: int = _setting(128, "most requests that may wait at the same time")
    read_timeout: float = _setting(30.0, "seconds a client may take to send one request")
    idle_timeout: float = _setting(120.0, "seconds an idle connection is kept")

    @property
    def has_keys(self) -> bool:
        """Whether any credentials are configured."""
        return bool(self.site_id or self.api_key or self.app_key or self.write_key)

    def __post_init__(self) -> None:
        """Raise ValueError, naming the setting, for a value that can't be."""
        for setting in fields(self):
            _check_type(setting.name, getattr(self, setting.name), type(setting.default))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of: {', '.join(choices)}")
        if self.public_url and not re.match("https?://.", self.public_url):
            raise ValueError(
                f"public_url must be a URL like http://fake:4668, not {self.public_url!r}"
            )
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together: set both or neither")


#: Larger numbers are mistakes: as seconds, 68 years.
MAX_SETTING = 1 << 31
MAX_PORT = 65535

_CHOICES = {"identifiers": ("email_or_id", "id", "email"), "region": ("us", "eu")}


def _check_type(name: str, value: Json, kind: type) -> None:
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
    most = MAX_PORT if name == "port" else MAX_SETTING
    if isinstance(value, (int, float)) and not 0 <= value <= most:
        raise ValueError(f"{name} must be between 0 and {most}, not {value}")


#: A body up to this size is answered by the loop; parsing a larger one would hold up others.
LOOP_BODY = 128 * 1024


# ---- the certificate that https is served with

# A certificate for local names and its key, so that https works without any set-up. It is safe
# to publish: the authority that signed it is good for these names alone, and its own key was
# destroyed, so whoever trusts it trusts nothing but local servers.
_BUILT_IN = {
    "ca": (
        "MIICKDCCAc2gAwIBAgIBATAKBggqhkjOPQQDAjA1MTMwMQYDVQQDDCpjdXN0b21lcmlvX2Zha2UgQ0Eg"
        "KGl0cyBrZXkgd2FzIGRlc3Ryb3llZCkwHhcNMjAwMTAxMDAwMDAwWhcNNDkxMjMxMDAwMDAwWjA1MTMw"
        "MQYDVQQDDCpjdXN0b21lcmlvX2Zha2UgQ0EgKGl0cyBrZXkgd2FzIGRlc3Ryb3llZCkwWTATBgcqhkjO"
        "PQIBBggqhkjOPQMBBwNCAARYkZvdkS4HZnSQERoq3iZQUE8IAG39ZgGp6ManIJDg2xPbeOm+q7FXcMKQ"
        "a8FEE+X069SOUAOA5n+Rcgo+G1Cro4HNMIHKMBIGA1UdEwEB/wQIMAYBAf8CAQAwDgYDVR0PAQH/BAQD"
        "AgEGMB0GA1UdDgQWBBS3lcPLELs6ISqjtUn34mfFrFYbQDCBhAYDVR0eAQH/BHoweKB2MAuCCWxvY2Fs"
        "aG9zdDAMggpjdXN0b21lcmlvMBGCD2N1c3RvbWVyaW8tZmFrZTAWghRob3N0LmRvY2tlci5pbnRlcm5h"
        "bDAKhwh/AAAA/wAAADAihyAAAAAAAAAAAAAAAAAAAAAB/////////////////////zAKBggqhkjOPQQD"
        "AgNJADBGAiEA7I/00m20qOueoGD/0aImut6wiE5wa/w6fj7TqFjPlAMCIQCIDA0Ukj8P71eSp9VDSSn4"
        "UCiuuBnzlWKcVNqBeMGiqQ=="
    ),
    "certificate": (
        "MIICEDCCAbagAwIBAgIBAjAKBggqhkjOPQQDAjA1MTMwMQYDVQQDDCpjdXN0b21lcmlvX2Zha2UgQ0Eg"
        "KGl0cyBrZXkgd2FzIGRlc3Ryb3llZCkwHhcNMjAwMTAxMDAwMDAwWhcNNDkxMjMxMDAwMDAwWjAUMRIw"
        "EAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR+ycpiXduKwhjlT+CJ9DWo"
        "0XFSAMqmcQN7r1FH6mrXjLKXfH5d/TJJ8DZmV69Sg/mXIAx+puvTUle2LfG7sMtIo4HXMIHUMAwGA1Ud"
        "EwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMBMGA1UdJQQMMAoGCCsGAQUFBwMBMB0GA1UdDgQWBBQr6Wyl"
        "o8KSnGWOjwOy4ov1qHdz8jAfBgNVHSMEGDAWgBS3lcPLELs6ISqjtUn34mfFrFYbQDBfBgNVHREEWDBW"
        "gglsb2NhbGhvc3SCCmN1c3RvbWVyaW+CD2N1c3RvbWVyaW8tZmFrZYIUaG9zdC5kb2NrZXIuaW50ZXJu"
        "YWyHBH8AAAGHEAAAAAAAAAAAAAAAAAAAAAEwCgYIKoZIzj0EAwIDSAAwRQIgV4hL4TbyU6Rwsts5JPoG"
        "sG+MsfrAS+3U19bRmqIzPlcCIQDPHox2MSotpQzE4kFeDrBUVFkhVwQnPp65E0sbyWOefA=="
    ),
    "key": (
        "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQguvaFIliJE9JBiw9X7vhHP02jmhhIvwsG"
        "4Jupd8GsRn+hRANCAAR+ycpiXduKwhjlT+CJ9DWo0XFSAMqmcQN7r1FH6mrXjLKXfH5d/TJJ8DZmV69S"
        "g/mXIAx+puvTUle2LfG7sMtI"
    ),
}


def _pem(label: str, name: str) -> str:
    text = _BUILT_IN[name]
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


#: What a client has to trust for https without a certificate of your own.
BUILT_IN_CA = _pem("CERTIFICATE", "ca")


# ======================================================================================
# ==== §4 Values
# ======================================================================================


# ---- JSON

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def _pieces_maker() -> Callable[[Json, int], Iterable[str]]:
    """What makes JSON of a value, in pieces. Made once: the library makes one for every call."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # PyPy
        return lambda value, _: _ENCODER.iterencode(value)
    quoted = json.encoder.encode_basestring
    return make(None, _ENCODER.default, quoted, None, ":", ",", False, False, True)  # type: ignore


_pieces = _pieces_maker()


def compact_text(value: Json) -> str:
    """JSON without spaces."""
    return "".join(_pieces(value, 0))


def compact(value: Json) -> bytes:
    """JSON as the App API writes it: no spaces, no newline at the end (observed)."""
    return "".join(_pieces(value, 0)).encode("utf-8", "replace")


def as_text(value: Json) -> str:
    """An attribute as the App API gives it back: always a string (observed)."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else compact_text(value)


#: JSON nested deeper than this is refused; deeper would exhaust the interpreter's stack.
MAX_DEPTH = 200
#: What a body of one of the APIs may hold: bytes, and values. Nobody else gets a turn while the
#: library reads a text, and 30 KB of gzip can be 32 MB of brackets, or a gigabyte of lists.
MAX_JSON, MAX_VALUES = 12 << 20, 500_000


class NotANumber(ApiError):
    """Raised for NaN and infinite numbers, which JSON does not have."""


def decode_json(raw: bytes, depth: int = MAX_DEPTH, bounded: bool = True) -> Json:
    """Parse a JSON text in UTF-8, nested up to `depth`; empty gives None.

    Raises ApiError 400 with the place, or 413 if it is `bounded` and beyond its bounds.
    """
    large = len(raw) > MAX_VALUES
    if large and bounded:
        _check_size(raw)
    try:
        text = raw.decode()
        start = _JSON_SPACE.match(text).end()  # type: ignore[union-attr]
        if start == len(text):
            return None
        value, end = (_PATIENT if large else _DECODER).raw_decode(text, start)
        if _JSON_SPACE.match(text, end).end() != len(text):  # type: ignore[union-attr]
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _not_json(f"nested deeper than {depth}") from None
    except ValueError:  # an integer beyond the interpreter's limit of digits
        raise _not_json("a number has too many digits") from None
    if len(raw) > 2 * depth and raw.count(b"[") + raw.count(b"{") > depth:
        _check_depth(value, depth)
    return _well_formed(value) if b"\\u" in raw else value


_JSON_SPACE = re.compile(r"[ \t\r\n]*")


def _check_size(raw: bytes) -> None:
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if len(raw) > MAX_JSON or values > MAX_VALUES:
        raise ApiError(413, f"JSON of more than {MAX_JSON} bytes or {MAX_VALUES} values is refused")


def _not_json(what: str) -> ApiError:
    return invalid(f"invalid JSON: {what}", reason="parse_error")


def _refuse_constant(name: str) -> NoReturn:
    raise NotANumber(400, Problem(f"invalid JSON: {name} is not a number", "", "parse_error"))


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text[:20])


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
#: Calls Python for each object, where the interpreter lets others have a turn.
_PATIENT = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_finite,
    object_pairs_hook=lambda pairs: dict(pairs),
)


def _check_depth(value: Json, most: int) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > most:
            raise _not_json(f"nested deeper than {most}")
        parts = [v.values() if isinstance(v, dict) else v for v in level if v]
        level = [v for part in parts for v in part if isinstance(v, (dict, list))]


_SURROGATE = re.compile("[\ud800-\udfff]")


def _well_formed(value: Json) -> Json:
    """Replace lone surrogates by U+FFFD, as the real service's JSON reader does (inferred)."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            # In pieces, because nobody else gets a turn in one.
            pieces = (value[i : i + 65536] for i in range(0, len(value), 65536))
            return "".join([_SURROGATE.sub("\ufffd", piece) for piece in pieces])
        return value
    if isinstance(value, dict):
        return {_well_formed(key): _well_formed(part) for key, part in value.items()}
    return [_well_formed(part) for part in value] if isinstance(value, list) else value


def decompressed(raw: bytes, window: int, limit: int) -> bytes:
    """Undo a compression, which may have several parts (RFC 1952 2.2).

    Raises zlib.error, or ValueError if it comes to more than `limit` bytes.
    """
    data, at, stream = bytearray(), 0, zlib.decompressobj(window)
    while at < len(raw):
        stream = zlib.decompressobj(window) if stream.eof else stream
        # In pieces, because what a part leaves over is copied.
        piece = raw[at : at + 4096]
        data += stream.decompress(piece, limit + 1 - len(data))
        if len(data) > limit:
            raise ValueError(f"it comes to more than {limit} bytes")
        at += len(piece) - len(stream.unused_data)
    if not stream.eof:
        raise zlib.error("it ends too early")
    return bytes(data)


#: The key that browsers send in bodies, and passwords in URLs.
_SECRETS = re.compile(
    rb"""("writeKey"\s*:\s*")(?:[^"\\]|\\.)+|(https?:(?:\\?/){2}[^\s/@:"'\\]*:)[^\s/"']*(?=@)"""
)


def unsecret(raw: bytes) -> bytes:
    """A body, or a URL, as it may be shown."""
    return _SECRETS.sub(rb"\1\2***", raw)


# ---- numbers, sizes, kinds

#: The largest whole number: 64 bits hold it, as in the real service (inferred).
MAX_NUMBER = (1 << 63) - 1

#: From here on a timestamp is taken for milliseconds: as seconds it lies beyond the year 5000.
MILLISECONDS = 100_000_000_000

#: The types of values that hold no others.
_FLAT = frozenset({str, int, float, bool, type(None)})


def without(mapping: Dict[str, Any], names: Sequence[str]) -> Dict[str, Any]:
    """A mapping but for some names; the same one if there are none."""
    return {k: v for k, v in mapping.items() if k not in names} if names else mapping


def part_of(item: Json, *names: str) -> Json:
    """An object inside of a value; {} if it isn't there."""
    for name in names:
        item = item.get(name) if isinstance(item, dict) else None
    return item if isinstance(item, dict) else {}


def merged(old: Json, new: Json) -> Json:
    """`new` over `old`, also inside of objects that both have."""
    both = {n for n, v in new.items() if isinstance(v, dict) and isinstance(old.get(n), dict)}
    return {**old, **new, **{name: merged(old[name], new[name]) for name in both}}


def _longer(text: str, limit: int) -> bool:
    # A character takes four bytes at most, so short texts need not be encoded.
    return len(text) * 4 > limit and len(text.encode("utf-8", "replace")) > limit


def kind_of(value: Json) -> str:
    """The JSON name of a value's type, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def is_yes(value: Json) -> bool:
    """Whether a value says yes; from a CSV it comes as text."""
    return value is not None and as_text(value).lower() in ("true", "1")


def whole_number(value: Json, name: str) -> Optional[int]:
    """A whole number, or None where there is none; "12" and 12.0 count. Raises ApiError 400."""
    if value is None or (type(value) is int and abs(value) <= MAX_NUMBER):
        return value
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        number = math.nan
    if not number.is_integer() or abs(number) > MAX_NUMBER:
        raise invalid(f"{name} must be a whole number, not {value!r:.60}", name)
    return int(number)


def zone_named(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises ApiError 400."""
    from zoneinfo import ZoneInfo

    try:
        return timezone.utc if name == "UTC" else ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise invalid(f"tz '{name}' is not the name of a time zone", "tz") from None


# ---- what a field has to be


class Check(NamedTuple):
    """What a value has to be: `type` says it in words, `wrong` what is wrong with one, or "".

    What is wrong reads on after the name: "must be a string", ".id is required" of a part of it.
    """

    type: str
    wrong: Callable[[Json], str]
    #: The fields of an object, or of each in a list; None if they may be any.
    inner: Callable[[Json], Optional[FieldList]] = lambda value: None


def _placed(name: str, wrong: str) -> Tuple[str, str]:
    """The full name of what is wrong inside of a field, and how it is wrong."""
    place, _, rest = wrong.partition(" ") if wrong[:1] in (".", "[") else ("", "", wrong)
    return name + place, rest


class FieldList(NamedTuple):
    """The fields of a body, or of an object in it, and what breaking their rules answers."""

    checks: Mapping[str, Check] = {}
    #: Those that must be there.
    needed: Sequence[str] = ()
    #: The status of a refusal.
    status: int = 400
    #: Whether other fields are refused, whatever the settings say.
    closed: bool = False
    #: Whether there must be any field at all.
    some: bool = False
    #: Whether null is the same as nothing, and "" or what is empty won't do where needed.
    lax: bool = False
    #: Whether a refusal names what is wrong first, and no more.
    first: bool = False
    #: How a refusal says that a field is missing (with what to send), or wrong (with how).
    missing: str = "{} is required: send {}"
    wrong: str = "{} {}"
    #: A right body to show when one is refused, or what makes it for the field that was wrong.
    example: Json = None
    #: Why there may be other fields, too; "" if there may not.
    free: str = ""

    def read(self, body: Json, where: str = "") -> Json:
        """The declared fields of an object. Raises ApiError with all that is wrong with it.

        `where` is what comes before the names in the messages, as in "customers[0].".
        """
        problems = list(self.problems(body, where))
        if problems:
            raise ApiError(self.status, *problems[: 1 if self.first else None])
        return self.given(body)

    def given(self, body: Json) -> Json:
        """The declared fields that an object has, without looking at them."""
        lax = self.lax
        return {n: body[n] for n in self.checks if n in body and not (lax and body[n] is None)}

    def problems(self, body: Json, where: str = "") -> Iterator[Problem]:
        """What is wrong with an object: first what is missing, then the others."""
        given = self.given(body)
        for name in self.needed:
            if name not in given or (self.lax and given[name] in ("", {}, [])):
                text = self.missing.format(where + name, self.checks[name].type)
                yield Problem(text, where + name, "required")
        for name, value in given.items():
            wrong = self.checks[name].wrong(value)
            if wrong:
                place, wrong = _placed(where + name, wrong)
                yield Problem(self.wrong.format(place, wrong), place)
        if self.closed:
            yield from self.strange(body, "is no field here", where)
        if self.some and not body:
            yield Problem(f"send at least one of {', '.join(self.checks)}", next(iter(self.checks)))

    def strange(self, body: Json, what: str, where: str = "") -> Iterator[Problem]:
        """The fields of an object, and of those inside, that are not declared."""
        for name, value in {} if self.free else body.items():
            if name not in self.checks:
                near = suggestion(name, list(self.checks))
                yield Problem(f"{where}{name} {what}; {near}", where + name)
                continue
            for place, part in enumerate(value) if isinstance(value, list) else [("", value)]:
                inner = self.checks[name].inner(part) if isinstance(part, dict) else None
                at = f"[{place}]." if isinstance(value, list) else "."
                if inner and not inner.closed:
                    yield from inner.strange(part, what, where + name + at)

    def exemplified(self, error: ApiError) -> ApiError:
        """A refusal with an example of what is right."""
        field = error.problems[0].field
        if callable(self.example):
            return invalid(f"{error.message}, as in {as_text(self.example(field))}", field)
        return invalid(f"{error.message}; an example: {as_text(self.example)}", field)

    def having(self, needed: str = "", /, **fields: Union[str, Check]) -> FieldList:
        """These rules with further fields: a check by its name, names by one of the WORDS."""
        checks = dict(self.checks)
        for word, given in fields.items():
            checks.update(
                {word: given}
                if isinstance(given, Check)
                else dict.fromkeys(given.split(), WORDS[word])
            )
        return self._replace(checks=checks, needed=(*self.needed, *needed.split()))

    def document(self) -> Json:
        """The fields as `/__parlel/routes` shows them."""
        return {name: self._field_document(name, check) for name, check in self.checks.items()}

    def _field_document(self, name: str, check: Check) -> Json:
        inner = check.inner({})
        more = {"fields": inner.document()} if inner else {}
        return {"type": check.type, "required": name in self.needed, **more}


_TYPE_NAMES = {
    dict: "an object", list: "a list", str: "a string", bool: "true or false",
    int: "a whole number", float: "a number", type(None): "null",
}  # fmt: skip


def text_field(longest: int = 1 << 20, blank: bool = False) -> Check:
    """A string of at most `longest` characters, not blank unless allowed."""

    def wrong(value: Json) -> str:
        if not isinstance(value, str):
            return f"must be a string, not {kind_of(value)}"
        if len(value) > longest:
            return f"is too long ({longest} characters at most)"
        return "" if blank or value.strip() else "can't be blank"

    return Check("a string", wrong)


def bytes_field(longest: int) -> Check:
    """A string of at most `longest` bytes, not blank."""

    def wrong(value: Json) -> str:
        if isinstance(value, str) and _longer(value.strip(), longest):
            return f"cannot be longer than {longest} bytes"
        return TEXT.wrong(value)

    return Check("a string", wrong)


def typed_field(*kinds: type) -> Check:
    """A value of one of these JSON types; NoneType for null."""
    named = [kind for kind in kinds if kind is not int or float not in kinds]
    names = " or ".join(_TYPE_NAMES[kind] for kind in named)

    def wrong(value: Json) -> str:
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if fits:
            return ""
        given = kind_of(value)
        return f"must be {names}, not {given}" if len(kinds) == 1 else f"must not be {given}"

    return Check(names, wrong)


def must_be(type: str, fits: Callable[[Json], Any]) -> Check:
    """A value that passes a test; `type` says it in words."""
    return Check(type, lambda value: "" if fits(value) else f"must be {type}")


def number_field(least: float, most: float, *kinds: type) -> Check:
    """A number within bounds."""
    typed = typed_field(*kinds)
    return must_be(
        f"{typed.type} from {least} to {most}",
        lambda value: not typed.wrong(value) and least <= value <= most,
    )


def choice_field(*choices: Json) -> Check:
    """One of some values."""
    return must_be(f"one of: {', '.join(map(str, choices))}", lambda value: value in choices)


def pattern_field(pattern: str, wanted: str) -> Check:
    """A string of some form, which `wanted` tells."""
    return must_be(wanted, lambda value: isinstance(value, str) and re.fullmatch(pattern, value))


def read_field(type: str, read: Callable[[Json, str], Any]) -> Check:
    """What a function can read that takes value and name, and raises ApiError."""

    def wrong(value: Json) -> str:
        try:
            read(value, "")
        except ApiError as error:
            return error.message.lstrip()
        return ""

    return Check(type, wrong)


def object_field(fields: FieldList) -> Check:
    """An object with fields of its own."""

    def wrong(value: Json) -> str:
        if not isinstance(value, dict):
            return f"must be an object, not {kind_of(value)}"
        problem = next(fields.problems(value, "."), None)
        return problem.message if problem else ""

    return Check("an object", wrong, lambda value: fields)


def _first_wrong(check: Check, parts: Iterable[Tuple[str, Json]]) -> str:
    found = ((place, check.wrong(part)) for place, part in parts)
    return next((" ".join(_placed(place, wrong)) for place, wrong in found if wrong), "")


def list_field(check: Check, least: int = 0, most: int = 1 << 30, of: str = "entry") -> Check:
    """A list of `least` to `most` values that are all alike."""
    type = f"a list of at least one {of}" if least else "a list"

    def wrong(value: Json) -> str:
        if not isinstance(value, list) or len(value) < least:
            return f"must be {type}, not {'[]' if value == [] else kind_of(value)}"
        if len(value) > most:
            return f"has {len(value)} entries; {most} at most"
        return _first_wrong(check, ((f"[{i}]", row) for i, row in enumerate(value)))

    return Check(type, wrong, check.inner)


def mapping_field(check: Check) -> Check:
    """An object whose values are all alike."""

    def wrong(value: Json) -> str:
        if not isinstance(value, dict):
            return f"must be an object, not {kind_of(value)}"
        return _first_wrong(check, ((f".{name}", part) for name, part in value.items()))

    return Check("an object", wrong)


TEXT, ANY_TEXT, SHORT_TEXT = text_field(), text_field(blank=True), text_field(1000)
FLAG, WHOLE, OBJECT = typed_field(bool), typed_field(int), typed_field(dict)
SCALAR = Check(
    "a string",
    lambda value: (
        f"must be a string, not {kind_of(value)}" if isinstance(value, (dict, list, bool)) else ""
    ),
)
WHOLE_OR_NULL = typed_field(int, type(None))
#: A time in Unix seconds that dates can be reckoned from: from 1970 to the begin of 9999.
LAST_MOMENT = 253_370_764_800
MOMENT = number_field(0, LAST_MOMENT, int)
Moment = Annotated[int, MOMENT]
Instant = Annotated[float, number_field(0, LAST_MOMENT, int, float)]
#: A whole number, also as a text or as 12.0.
NUMBER = read_field("a whole number", whole_number)
ANYTHING = Check("anything", lambda value: "")
FILTER = Check("a filter object", lambda value: "")
URL = pattern_field(r"(?s)https?://[^\s/]+.*", "an http or https URL")
#: What a field list calls the commonest checks.
WORDS = {
    "any": ANYTHING, "text": ANY_TEXT, "filled": TEXT, "short": SHORT_TEXT, "scalar": SCALAR,
    "word": typed_field(int, str), "flag": FLAG, "whole": WHOLE, "maybe": WHOLE_OR_NULL,
    "number": NUMBER, "moment": MOMENT, "object": OBJECT, "rows": typed_field(list),
    "filter": FILTER,
}  # fmt: skip
#: For operations without a body, and to begin a field list with.
NO_FIELDS = FieldList()
LAX, CLOSED = FieldList(lax=True), FieldList(closed=True)


def chosen(body: Json, name: str, table: Mapping[str, Any]) -> Any:
    """What a table has for the word in a field. Raises ApiError 400 if that isn't one of them."""
    value = body.get(name)
    if value in (None, ""):
        raise required(name, f"one of: {', '.join(table)}")
    if not isinstance(value, str) or value not in table:
        raise invalid(f"{name} must be one of: {', '.join(table)}", name)
    return table[value]


# ======================================================================================
# ==== §5 Liquid
# ======================================================================================


#
# Source text → tokens → nodes → text. A node is a closure that takes the rendering under way
# (`_Render`); an expression is one that returns a value. Values are what JSON has: no attribute
# of a Python object can be reached. Rules are, in this order, the docs', those of LiquidJS
# (Customer.io's "latest" engine) and Shopify's.


class LiquidError(Exception):
    """A template that cannot be parsed or rendered: what is wrong, and where.

    `line` and `column` count from 1; they are 0 while the place is not known.
    """

    def __init__(self, message: str, offset: int = -1) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.line = self.column = 0

    def placed(self, source: str) -> LiquidError:
        """Turn the offset into line and column, unless an inner template has done so."""
        if not self.line and self.offset >= 0:
            self.line = source.count("\n", 0, self.offset) + 1
            self.column = self.offset - source.rfind("\n", 0, self.offset)
        return self


class MissingVariable(LiquidError):
    """An attribute that is not set, in a namespace that has to be complete."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Variable '{name}' is missing")  # the text of the docs
        self.name = name


class Exhausted(LiquidError):
    """A rendering that has used up its limits."""


class LiquidLimits(NamedTuple):
    """What a message may use up before it fails; all of it counted, none of it timed.

    output: characters written, captured ones included; iterations: of all loops together;
    work: words of the templates run, values and stretches of text handled, each worth a
    microsecond at most; nesting: snippets and render_liquid inside each other.
    """

    output: int = 2_000_000
    iterations: int = 100_000
    work: int = 1_000_000
    nesting: int = 5


_LIMITS = LiquidLimits()
#: Pieces of a template that is rendered at once, without counting what it uses up.
_MOST_AT_ONCE = 1000
#: Words and signs in the tags of one template, and blocks inside blocks.
_MOST_WORDS = 100_000
_DEEPEST_BLOCK = 100
#: Characters of a text, values in a list, and bits of a number that a filter may make.
_LONGEST_TEXT = 2_000_000
_LARGEST_LIST = 100_000
_WIDEST_NUMBER = 256
_LONGEST_NUMBER = 75

#: Answers a tag that only the world outside can answer: text, or a function of its arguments.
_Host = Mapping[str, Union[str, Callable[[Mapping[str, Any]], Any]]]


class Budget:
    """What is left of the limits for one message, whatever templates it consists of."""

    __slots__ = ("iterations", "limits", "room", "work")

    def __init__(self, limits: LiquidLimits = _LIMITS) -> None:
        self.limits = limits
        self.room, self.iterations, self.work, _ = limits

    def check(self) -> None:
        """Raise Exhausted, with the limit, once there is nothing left."""
        if self.room < 0:
            raise Exhausted(f"output is larger than {self.limits.output} characters")
        if self.iterations < 0:
            raise Exhausted(f"more than {self.limits.iterations} loop iterations")
        if self.work < 0:
            raise Exhausted(f"rendering takes more than {self.limits.work} steps")


class _Break(Exception):
    """Ends the innermost loop."""


class _Continue(Exception):
    """Ends one round of the innermost loop."""


class _Special:
    """The values `empty` and `blank`, which equal anything that is so."""

    def __init__(self, matches: Callable[[Any], bool]) -> None:
        self.matches = matches


def _is_empty(value: Any) -> bool:
    return isinstance(value, (str, list, dict)) and not value


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is False or _is_empty(value)


_EMPTY = _Special(_is_empty)
_BLANK = _Special(_is_blank)
_LITERALS = {
    "true": True,
    "false": False,
    "nil": None,
    "null": None,
    "empty": _EMPTY,
    "blank": _BLANK,
}
#: What a path leads to that isn't there, and an argument that isn't given.
_ABSENT: Any = object()


# ---- one rendering


class _Render:
    """One rendering: what the template sees, what it has written, what it may still use up."""

    def __init__(
        self,
        data: Mapping[str, Any],
        strict: FrozenSet[str],
        budget: Budget,
        now: float,
        host: _Host,
    ) -> None:
        self.data, self.strict, self.budget = data, strict, budget
        self.now, self.host = now, host
        self.assigned: Dict[str, Any] = {}
        self.loops: Dict[str, Any] = {}
        #: Where cycles and loops with an offset go on.
        self.places: Dict[Tuple[str, ...], int] = {}
        self.out: List[str] = []
        self.nesting = 0

    def write(self, text: str) -> None:
        """Add to the output."""
        self.budget.room -= len(text)
        if self.budget.room < 0:
            self.budget.check()
        self.out.append(text)

    def spend(self, work: int) -> None:
        """Count work; raise LiquidError once there was too much."""
        self.budget.work -= work
        if self.budget.work < 0:
            self.budget.check()

    def charge(self, value: Any) -> None:
        """Count the work that handling this value will take."""
        kind = value.__class__
        if kind is str:
            self.spend(len(value) >> 3)
        elif kind is list or kind is dict:
            self.spend(_weight(value))

    def text(self, value: Any) -> str:
        """Give a value as it is printed."""
        self.charge(value)
        return _text(value)

    def captured(self, body: _Node) -> str:
        """Give what a body writes, instead of writing it."""
        kept, self.out = self.out, []
        try:
            body(self)
            return "".join(self.out)
        finally:
            self.out = kept

    def include(self, source: str, own: bool = False) -> str:
        """Render another template in this one; with variables of its `own`, or with ours."""
        limits = self.budget.limits
        if self.nesting >= limits.nesting:
            raise LiquidError(f"more than {limits.nesting} templates inside each other")
        kept = self.assigned, self.loops
        self.nesting += 1
        self.assigned, self.loops = {} if own else self.assigned, {}
        try:
            return self.captured(parse_liquid(source).run)
        finally:
            self.nesting -= 1
            self.assigned, self.loops = kept

    def absent(self, path: Sequence[Any]) -> None:
        """Stand for a variable that isn't there: nil, or an error in a strict namespace.

        A namespace the data lacks is an unknown one, and prints nothing (docs).
        """
        root = path[0]
        known = root in self.data and root not in self.assigned
        if known and root in self.strict and len(path) > 1:
            raise MissingVariable(".".join([_text(part) for part in path]))


#: Writes something.
_Node = Callable[[_Render], None]
#: Gives the value of an expression.
_Read = Callable[[_Render], Any]
#: What needs no node: a text, or the two names of `{{ a.b }}`.
_Plain = Union[str, Tuple[str, str]]


class Template:
    """A parsed template; may be rendered any number of times, by several threads at once."""

    def __init__(self, source: str, body: _Node, words: int) -> None:
        self.source, self.words = source, words
        self._body = body
        self._plain = _plain_parts(source)
        #: Bytes in memory, roughly.
        self.size = 500 + len(source) + 500 * words

    def render(
        self,
        data: Mapping[str, Any],
        strict: FrozenSet[str] = frozenset(),
        now: float = 0.0,
        host: Optional[_Host] = None,
        budget: Optional[Budget] = None,
    ) -> str:
        """Give the text this template makes of JSON-like `data`, which is not changed.

        `strict` names the namespaces of `data` in which an attribute must exist, `now` is
        the time in Unix seconds. `host` answers the tags of `_HOST_TAGS`, each with a text or
        a function of the tag's arguments; a bare argument, as in `random 6`, is named `value`.
        The templates of one message share a `budget`. Raises LiquidError (MissingVariable for a
        missing attribute) with line and column.
        """
        budget = budget or Budget()
        text = self._at_once(data, budget.room) if self._plain else None
        if text is not None:
            return text
        state = _Render(data, strict, budget, now, host or {})
        self.run(state)
        return "".join(state.out)

    def _at_once(self, data: Mapping[str, Any], most: int) -> Optional[str]:
        """What a template of texts and `{{ a.b }}` prints, as most are; None if in doubt."""
        out: List[str] = []
        for part in self._plain:
            if isinstance(part, tuple):
                value = data.get(part[0])
                value = value.get(part[1]) if value.__class__ is dict else None
                if value.__class__ is int and value.bit_length() <= _WIDEST_NUMBER:
                    value = str(value)
                if value.__class__ is not str:
                    return None
                part = value
            out.append(part)
        text = "".join(out)
        return text if len(text) <= most else None

    def run(self, state: _Render) -> None:
        """Write to a rendering under way; break and continue outside a loop end it."""
        try:
            state.spend(3 * self.words)  # for parsing it, whether or not it was parsed before
            self._body(state)
        except (_Break, _Continue):
            pass
        except LiquidError as error:
            error.placed(self.source)
            raise
        except RecursionError:
            raise LiquidError(_TOO_DEEP, 0).placed(self.source) from None


_TWO_NAMES = re.compile(r"(?<!\{)\{\{ ?([a-z_]\w*)\.([a-z_]\w*) ?\}\}", re.IGNORECASE | re.ASCII)


def _plain_parts(source: str) -> List[_Plain]:
    """The texts and the outputs of two names that a template consists of; none if of others."""
    texts: List[_Plain] = []
    pieces = _TWO_NAMES.split(source)
    for text, root, name in zip(pieces[::3], [*pieces[1::3], ""], [*pieces[2::3], ""]):
        if "{{" in text or "{%" in text or root in _RENDERED_NAMESPACES:
            return []
        texts += [text, (root, name)]
    return texts[:-1] if len(texts) <= _MOST_AT_ONCE else []


_TOO_DEEP = "liquid is nested too deeply"


class _Parsed(Dict[str, Template]):
    """Templates by source, the oldest first; it forgets them when they take too much memory."""

    MOST = 32_000_000  # bytes, roughly

    def __init__(self) -> None:
        self.size = 0
        self._lock = threading.Lock()

    def keep(self, template: Template) -> Template:
        """Take a template in."""
        with self._lock:
            self._forget(template.source)
            self[template.source] = template
            self.size += template.size
            while self.size > self.MOST:
                self._forget(next(iter(self)))
        return template

    def _forget(self, source: str) -> None:
        known = self.pop(source, None)
        self.size -= known.size if known else 0


_PARSED = _Parsed()


def parse_liquid(source: str) -> Template:
    """Give the template for this source; LiquidError, with line and column, if it is broken."""
    return _PARSED.get(source) or _PARSED.keep(_parsed(source))


def _parsed(source: str) -> Template:
    try:
        parser = _Parser(source, _tokens(source))
        body, _ = parser.block()
        return Template(source, body, parser.words)
    except LiquidError as error:
        error.placed(source)
        raise
    except RecursionError:
        raise LiquidError(_TOO_DEEP, 0).placed(source) from None


# ---- values


def _text(value: Any) -> str:
    """A value as it is printed; nothing for what is not data."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _digits_of(value)
    if isinstance(value, list):
        return "".join([_text(item) for item in value])
    return "[object Object]" if isinstance(value, dict) else ""


def _joined(value: Any, separator: str = ",") -> str:
    """A value as JavaScript joins it with others: lists inside lists have commas."""
    if isinstance(value, list):
        return separator.join([_joined(item) for item in value])
    return _text(value)


def _digits_of(number: Union[int, float]) -> str:
    """A number as JavaScript writes it: 20.0 is 20."""
    if isinstance(number, int):
        return str(_bounded(number))
    if not math.isfinite(number):
        return "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"
    mantissa, e, power = repr(number).partition("e")
    if number == int(number) and abs(number) < 1e21:
        return str(int(number)) if not e else f"{_exact(number):f}"
    if not e or -7 < int(power) < 0:
        return f"{_exact(number):f}"
    return f"{mantissa}e{int(power):+d}"


def _exact(number: Union[int, float]) -> Any:
    """A number as a Decimal, with the decimals that it is written with."""
    from decimal import Decimal

    return Decimal(repr(number))


def _json(value: Any, indent: Any = None) -> str:
    """A value in JSON, on lines of their own if it is to be indented: by spaces, or by a text."""
    space = indent[:10] if isinstance(indent, str) else " " * min(_integer(indent), 10)
    return _json_part(value, "\n" if space else "", space)


def _json_part(value: Any, line: str, space: str) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, dict)) and value:
        inner, colon = line + space, ": " if line else ":"
        if isinstance(value, list):
            rows = [_json_part(item, inner, space) for item in value]
        else:
            names = [json.dumps(name, ensure_ascii=False) + colon for name in value]
            rows = [n + _json_part(v, inner, space) for n, v in zip(names, value.values())]
        text = ("," + inner).join(rows)
        return f"[{inner}{text}{line}]" if isinstance(value, list) else f"{{{inner}{text}{line}}}"
    if isinstance(value, (list, dict)):
        return "[]" if isinstance(value, list) else "{}"
    return _text(value) if isinstance(value, (int, float)) and value - value == 0 else "null"


def _weight(value: Any) -> int:
    """About how many steps it takes to go through a value, deep."""
    if isinstance(value, list):
        return 1 + sum([_weight(item) for item in value])
    if isinstance(value, dict):
        return 1 + sum([_weight(item) for item in value.values()])
    return 1 + (len(value) >> 3) if isinstance(value, str) else 1


def _bounded(value: Any) -> Any:
    """The number itself; LiquidError if it is absurdly large."""
    if isinstance(value, int) and value.bit_length() > _WIDEST_NUMBER:
        raise LiquidError("number is too large")
    return value


_NUMBER = re.compile(
    r"[-+]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][-+]?\d{1,9})?|0[xX][0-9a-fA-F]{1,60}"
)


def _number(value: Any, otherwise: Any = 0) -> Any:
    """A value to calculate with, as JavaScript makes it, or `otherwise` for what is no number."""
    if isinstance(value, str):
        text = value.strip() if len(value) < 1000 else "-"
        if not _NUMBER.fullmatch(text):
            known = {"": 0, "Infinity": math.inf, "-Infinity": -math.inf}
            return known.get(text, otherwise)
        return _as_data(int(text, 16) if text[:2] in ("0x", "0X") else float(text))
    if isinstance(value, list):
        return _number(_joined(value), otherwise) if len(value) < 2 else otherwise
    return value + 0 if isinstance(value, (int, float)) and value == value else otherwise


def _as_data(number: Any) -> Any:
    """A number as data: whole ones as int, as far as JavaScript's are exact."""
    if isinstance(number, int):
        return number if abs(number) <= _MOST_EXACT else float(_bounded(number))
    whole = math.isfinite(number) and number == int(number) and abs(number) <= _MOST_EXACT
    return int(number) if whole else number


_MOST_EXACT = 2**53


def _integer(value: Any, whole: Callable[[Any], int] = int) -> int:
    """A whole number of what a filter or a tag is told."""
    number = _number(value)
    return whole(number) if math.isfinite(number) else int(math.copysign(_MOST_EXACT, number))


def _units(text: str) -> int:
    """The length of a text as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _items(value: Any) -> List[Any]:
    """What an array filter works on; anything else counts as its only value."""
    if isinstance(value, list):
        return value
    return [] if value is None else ["" if isinstance(value, _Special) else value]


def _loopable(value: Any) -> List[Any]:
    """What `for` goes through: a text counts as one value, an object as its pairs."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return [[key, item] for key, item in value.items()]
    return [value] if isinstance(value, str) and value else []


def _item(value: Any, key: Any) -> Any:
    """The part of a value that `.key` or `[key]` names; `_ABSENT` if there is none."""
    if isinstance(key, (int, float)) and not isinstance(value, list):
        key = _text(key)
    if isinstance(value, dict):
        if isinstance(key, str) and key in value:
            return value[key]
        return len(value) if key == "size" else _ABSENT
    if not isinstance(value, (list, str)):
        return _ABSENT
    if key in ("size", "length"):
        return _size(value)
    if key in ("first", "last") and isinstance(value, list):
        return _first(value) if key == "first" else _last(value)
    return _element(value, key)


def _element(value: Any, key: Any) -> Any:
    if isinstance(key, str) and key.isdecimal() and len(key) < 10 and str(int(key)) == key:
        key = int(key)
    if not _is_number(key) or key != int(key):
        return _ABSENT
    return value[int(key)] if -len(value) <= key < len(value) else _ABSENT


def _reached(value: Any, path: Sequence[str]) -> Any:
    """What a path of names leads to; None if nothing."""
    for name in path:
        value = _item(value, name)
    return None if value is _ABSENT or not path else value


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, (str, list)) else ""


def _last(value: Any) -> Any:
    return (value[-1] if value else None) if isinstance(value, (str, list)) else ""


def _size(value: Any) -> int:
    return _units(value) if isinstance(value, str) else len(value) if isinstance(value, list) else 0


# ---- comparing: each takes the rendering, and charges what it does


def _truthy(value: Any) -> bool:
    return value is not None and value is not False


def _equal(state: _Render, left: Any, right: Any) -> bool:
    """Liquid's `==`: 1 equals 1.0, but neither true nor "1"; an object equals itself alone."""
    if isinstance(right, _Special):
        left, right = right, left
    if isinstance(left, _Special):
        state.spend(len(right) >> 3 if isinstance(right, str) else 0)
        return left is not right and left.matches(right)
    if isinstance(left, str):
        if len(left) > 500 and isinstance(right, str):
            state.spend(len(left) >> 8)
        return bool(left == right)
    if isinstance(left, list):
        return isinstance(right, list) and _equal_lists(state, left, right)
    if isinstance(left, dict):
        return left is right
    return bool(left == right) and isinstance(left, bool) is isinstance(right, bool)


def _equal_lists(state: _Render, left: List[Any], right: List[Any]) -> bool:
    if len(left) != len(right):
        return False
    for one, other in zip(left, right):
        state.spend(1)
        if not _equal(state, one, other):
            return False
    return True


def _contains(state: _Render, left: Any, right: Any) -> bool:
    if isinstance(left, list) and right is not None:
        state.spend(len(left))
        return any(_equal(state, item, right) for item in left)
    return isinstance(left, str) and right is not None and _finds(state, left, _joined(right))


def _finds(state: _Render, text: str, part: str) -> bool:
    """Whether a text has a part. Old Pythons may take as long as both are long."""
    state.spend((len(text) >> 4) * (1 + (len(part) >> 8)))
    return part in text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _ordering(compare: Callable[[Any, Any], Any]) -> Callable[[_Render, Any, Any], bool]:
    """Make `<` and the like: false for what has no order, an error for a text and a number.

    Attributes are texts, so this is the error people meet ("Unidentified method", docs).
    """

    def ordered(state: _Render, left: Any, right: Any) -> bool:
        kinds = [(isinstance(it, str), isinstance(it, (int, float))) for it in (left, right)]
        if (False, False) in kinds:
            return False
        if kinds[0] != kinds[1]:
            raise LiquidError("Unidentified method: a text and a number have no order")
        if isinstance(left, str):
            state.spend(len(left) >> 8)
        return bool(compare(left, right))

    return ordered


_COMPARISONS: Dict[str, Callable[[_Render, Any, Any], bool]] = {
    "==": _equal,
    "!=": lambda state, left, right: not _equal(state, left, right),
    "<>": lambda state, left, right: False,  # not known, but not refused either (LiquidJS)
    "<": _ordering(operator.lt),
    "<=": _ordering(operator.le),
    ">": _ordering(operator.gt),
    ">=": _ordering(operator.ge),
    "contains": _contains,
}


# ---- source text into tokens


class _Token(NamedTuple):
    """A stretch of a template: kind is "text", "output", "tag" or "broken" (text says why).

    It begins at `start`; what is left of it to read begins at `offset`.
    """

    kind: str
    text: str
    start: int
    offset: int = 0
    name: str = ""


_OPENING = re.compile(r"\{\{|\{%")
_TAG_NAME = re.compile(r"\s*(#|\w*)")
_END_RAW = re.compile(r"\{%-?\s*endraw\s*(-?)%\}")
#: What ends an output, and the texts in it that may hold such an end.
_OUTPUT_END = re.compile(
    r"""\}\}|"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|'[^'\\]*(?:\\.[^'\\]*)*(?:'|\Z)""", re.DOTALL
)


def _tokens(source: str) -> Iterator[_Token]:
    """Cut a template up; whitespace control and `raw` are done with here."""
    position, trim = 0, False
    while position < len(source):
        opening = _OPENING.search(source, position)
        start = opening.start() if opening else len(source)
        text = source[position:start].lstrip() if trim else source[position:start]
        text = text.rstrip() if source.startswith("-", start + 2) else text
        if text:
            yield _Token("text", text, position)
        if opening is None:
            return
        token, position, trim = _bracketed(source, start)
        yield token
        if token.name == "raw":
            token, position, trim = _raw(source, token, position)
            yield token


def _bracketed(source: str, start: int) -> Tuple[_Token, int, bool]:
    """The tag or output at `start`, where it ends, and whether it trims what follows."""
    kind = "output" if source[start + 1] == "{" else "tag"
    end = source.find("%}", start + 2) if kind == "tag" else _end_of_output(source, start + 2)
    if end < 0:
        near = source[start : start + 20].split("\n")[0]
        return _Token("broken", f'{kind} "{near}" not closed', start), len(source), False
    begin = start + 3 if source[start + 2] == "-" else start + 2
    trim = source[end - 1] == "-" and end > begin
    markup = source[begin : end - 1 if trim else end]
    token = _tag(markup, start, begin) if kind == "tag" else _Token(kind, markup, start, begin)
    return token, end + 2, trim


def _end_of_output(source: str, position: int) -> int:
    end = source.find("}}", position)
    if source.find('"', position, end) < 0 and source.find("'", position, end) < 0:
        return end
    matches = _OUTPUT_END.finditer(source, position)
    return next((match.start() for match in matches if match[0] == "}}"), -1)


def _tag(markup: str, start: int, offset: int) -> _Token:
    match = _TAG_NAME.match(markup)
    assert match is not None  # the pattern matches anything
    return _Token("tag", markup[match.end() :], start, offset + match.end(), match.group(1))


def _raw(source: str, token: _Token, position: int) -> Tuple[_Token, int, bool]:
    end = _END_RAW.search(source, position)
    if end is None:
        return _Token("broken", 'tag "raw" not closed', token.start), len(source), False
    text = source[position : end.start()]
    return _Token("text", text, position), end.end(), bool(end.group(1))


# ---- expressions

_LEXEME = re.compile(
    r"""\s*(?:(?P<string>"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')
    |(?P<number>[-+]?[0-9]+(?:\.(?!\.)[0-9]*)?(?![\w-])(?!\.(?!\.)))
    |(?P<name>[^\s\x00-,./:-@\[-^`{-\x7f]+\??)
    |(?P<symbol>==|!=|<>|<=|>=|\.\.|[<>=.,:|\[\]()])
    |(?P<end>\Z))""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,4}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _unescaped(match: Match[str]) -> str:
    text = match[1]
    if text[0] == "u":
        return chr(int(text[1:] or "0", 16))
    return chr(int(text, 8)) if text[0] in "01234567" else _ESCAPES.get(text, text)


class _Constant:
    """An expression that is always the same."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, _: Any) -> Any:
        return self.value


class _Markup:
    """Reads the inside of one tag or output, from left to right.

    `locals` are the names of the loops around it.
    """

    def __init__(self, text: str, offset: int = -1, locals: Sequence[str] = ()) -> None:
        self._text, self._offset, self._locals = text, offset, locals
        self.lexemes: List[Tuple[str, str, int]] = []
        self._index = position = 0
        while True:
            match = _LEXEME.match(text, position)
            if match is None:
                position += len(text[position:]) - len(text[position:].lstrip())
                raise self._error(f'unexpected "{text[position]}"', position)
            kind = cast(str, match.lastgroup)
            self.lexemes.append((kind, match[kind], match.start(kind)))
            position = match.end()
            if kind == "end":
                break

    def _error(self, message: str, position: int) -> LiquidError:
        return LiquidError(message, self._offset + position if self._offset >= 0 else -1)

    def unexpected(self) -> LiquidError:
        """Make the error for the current lexeme, for the caller to raise."""
        kind, text, position = self.lexemes[self._index]
        # The text for an end too early is Customer.io's (2026 reference).
        what = "unexpected end of liquid tag" if kind == "end" else f'unexpected "{text}"'
        return self._error(what, position)

    def sees(self, *texts: str) -> bool:
        """Whether the current lexeme is one of these."""
        kind, text, _ = self.lexemes[self._index]
        return text in texts and kind in ("name", "symbol")

    def accept(self, *texts: str) -> bool:
        """Step over the current lexeme if it is one of these."""
        found = self.sees(*texts)
        self._index += found
        return found

    def expect(self, text: str) -> None:
        """Step over this lexeme; LiquidError if it is another."""
        if not self.accept(text):
            raise self.unexpected()

    def take(self, *kinds: str) -> Tuple[str, str]:
        """Step over a lexeme of one of these kinds; gives its kind and text."""
        kind, text, _ = self.lexemes[self._index]
        if kind not in kinds:
            raise self.unexpected()
        self._index += 1
        return kind, text

    def name(self) -> str:
        """Read a name."""
        return self.take("name")[1]

    def at_end(self) -> bool:
        """Whether everything has been read."""
        return self.lexemes[self._index][0] == "end"

    def end(self) -> None:
        """Raise LiquidError unless everything has been read."""
        if not self.at_end():
            raise self.unexpected()

    def source_of(self, read: Callable[[], _Read]) -> Tuple[_Read, str]:
        """Read an expression; gives it together with its source text."""
        start = self.lexemes[self._index][2]
        expression = read()
        return expression, self._text[start : self.lexemes[self._index][2]].strip()

    def value(self, lenient: bool = False) -> _Read:
        """Read a literal, a range or a path. A lenient path may lead nowhere."""
        if self.sees("["):
            return self._dynamic_path(lenient)
        if self.accept("("):
            return self._part_of(self._range())
        kind, text = self.take("string", "number", "name")
        if kind == "string":
            text = text[1:-1]
            return self._part_of(_Constant(_ESCAPE.sub(_unescaped, text) if "\\" in text else text))
        if kind == "number":
            if len(text) > _LONGEST_NUMBER:
                raise self._error("number is too large", self.lexemes[self._index - 1][2])
            return _Constant(_as_data(float(text) if "." in text else int(text)))
        if text in _LITERALS:
            return self._part_of(_Constant(_LITERALS[text]))
        return _variable(text, self._keys(), text in self._locals, lenient)

    def _range(self) -> _Read:
        first = self.value()
        self.expect("..")
        last = self.value()
        self.expect(")")
        return lambda state: _range_of(
            state, *[_number(end(state), math.nan) for end in (first, last)]
        )

    def _part_of(self, whole: _Read) -> _Read:
        """Read what follows a value that isn't a variable's: `"text".size`."""
        if not self.sees(".", "["):
            return whole
        keys = self._keys()
        return lambda state: _inside(whole(state), [key(state) for key in keys])

    def _keys(self) -> List[_Read]:
        keys: List[_Read] = []
        while True:
            if self.accept("."):
                names = self.take("name", "number")[1].split(".")
                keys += [_Constant(name) for name in names]
            elif self.accept("["):
                keys.append(self.value(lenient=True))
                self.expect("]")
            else:
                return keys

    def _dynamic_path(self, lenient: bool) -> _Read:
        """A path whose first name is itself looked up: `["a name"].x`, `[which]`."""
        keys = self._keys()

        def read(state: _Render) -> Any:
            root = _text(keys[0](state))
            return _variable(root, keys[1:], root in state.loops, lenient)(state)

        return read

    def filtered(self, lenient: bool = False) -> _Read:
        """Read an expression and its filters; `default` first makes up for a missing one."""
        start = self._index
        read = self.expression(lenient)
        if self.sees("|") and self.lexemes[self._index + 1][1] == "default" and not lenient:
            self._index = start
            read = self.expression(lenient=True)
        while self.accept("|"):
            read = self._filter(read)
        return read

    def _filter(self, read: _Read) -> _Read:
        where = self._index
        name = self.name()
        positional, options = self._arguments() if self.accept(":") else ([], {})
        try:
            return _applied(name, read, positional, options)
        except LiquidError as error:
            raise self._error(error.message, self.lexemes[where][2]) from None

    def _arguments(self) -> Tuple[List[_Read], Dict[str, _Read]]:
        positional: List[_Read] = []
        options: Dict[str, _Read] = {}
        while not self.at_end() and not self.sees("|"):
            kind, text, _ = self.lexemes[self._index]
            if kind == "name" and self.lexemes[self._index + 1][1] == ":":
                self._index += 2
                options[text] = self.value()
            else:
                positional.append(self.value())
            if not self.accept(","):
                break
        return positional, options

    def expression(self, lenient: bool = False) -> _Read:
        """Read comparisons joined by `and` and `or`, which bind to the right."""
        reads, joints = [self._comparison(lenient)], []
        while self.sees("and", "or"):
            joints.append(self.name() == "or")
            reads.append(self._comparison(lenient))
        if not joints:
            return reads[0]
        chain, last = list(zip(reads, joints)), reads[-1]

        def joined(state: _Render) -> bool:
            for read, decides in chain:
                if _truthy(read(state)) is decides:
                    return decides
            return _truthy(last(state))

        return joined

    def _comparison(self, lenient: bool) -> _Read:
        if self.accept("not"):
            negated = self._comparison(lenient)
            return lambda state: not _truthy(negated(state))
        left = self.value(lenient)
        if not self.sees(*_COMPARISONS):
            return left
        compare = _COMPARISONS[self.take("name", "symbol")[1]]
        right = self._comparison(lenient)
        return lambda state: compare(state, left(state), right(state))


def _range_of(state: _Render, first: Any, last: Any) -> List[Any]:
    size = last - first + 1
    if not size > 0:  # nor if one of them is no number
        return []
    if size > _LARGEST_LIST:
        raise LiquidError(f"more than {_LARGEST_LIST} values in a list")
    state.spend(int(size) >> 3)
    return [_as_data(first + step) for step in range(math.ceil(size))]


def _inside(value: Any, keys: Iterable[Any]) -> Any:
    for key in keys:
        value = _item(value, key)
    return None if value is _ABSENT else value


def _variable(root: str, keys: Sequence[_Read], local: bool, lenient: bool) -> _Read:
    """Make the lookup of a variable, `local` to a loop or not."""
    fixed = None
    if all(isinstance(key, _Constant) for key in keys):
        fixed = [key(None) for key in keys]  # type: ignore[arg-type]

    def read(state: _Render) -> Any:
        value = (state.loops if local else state.assigned).get(root, _ABSENT)
        if value is _ABSENT and not local:
            value = state.data.get(root, _ABSENT)
        parts = [key(state) for key in keys] if fixed is None else fixed
        for part in parts:
            if value.__class__ is dict and part.__class__ is str and part in value:
                value = value[part]
            else:
                value = _item(value, part)
        if value is not _ABSENT:
            return value
        return None if lenient or local else state.absent((root, *parts))

    return _rendered(read) if root in _RENDERED_NAMESPACES and not local else read


class _Signature(NamedTuple):
    """How a filter is called: with how many arguments at most, and what options."""

    takes_state: bool
    most: int
    options: FrozenSet[str]


@functools.lru_cache(maxsize=512)
def _signature(function: Callable[..., Any]) -> _Signature:
    parameters = list(inspect.signature(function).parameters.values())
    takes_state = parameters[0].name == "state"
    places = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1 + takes_state :]
    options = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    counts = parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL
    return _Signature(takes_state, 9 if counts else len(places), options)


#: Filters that take no longer for a large value than for a small one.
_CONSTANT_TIME = frozenset({"default", "first", "last", "raw", "size"})
#: What a filter may raise over a value it can make nothing of.
_TROUBLE: Tuple[Type[Exception], ...] = (ValueError, TypeError, ArithmeticError)
_SIZED = frozenset({str, list, dict})


def _applied(
    name: str, read: _Read, positional: Sequence[_Read], options: Mapping[str, _Read]
) -> _Read:
    """Make a filtered expression; LiquidError for an unknown filter.

    As in LiquidJS, arguments that are too many or unknown count for nothing.
    """
    function = LIQUID_FILTERS.get(name)
    if function is None:
        raise LiquidError(f"undefined filter: {name}")
    takes_state, most, known = _signature(function)
    positional = positional[:most]
    options = {key: option for key, option in options.items() if key in known}
    costs = name not in _CONSTANT_TIME

    def apply(state: _Render) -> Any:
        arguments = [read(state)]
        for argument in positional:
            arguments.append(argument(state))
        if costs:
            for value in arguments:
                if value.__class__ in _SIZED:
                    state.charge(value)
        named = {key: option(state) for key, option in options.items()} if options else {}
        try:
            if takes_state:
                result = function(state, *arguments, **named)
            else:
                result = function(*arguments, **named)
        except _TROUBLE as error:
            raise LiquidError(f"{name}: {error}") from None
        return _checked_size(state, result) if costs and result.__class__ in _SIZED else result

    return apply


def _checked_size(state: _Render, value: Any) -> Any:
    state.charge(value)
    if len(value) > (_LONGEST_TEXT if isinstance(value, str) else _LARGEST_LIST):
        raise LiquidError("a value grows too large")
    return value


# ---- tokens into nodes


#: What a body consists of: texts and nodes, each with the place where it stands.
_Piece = Tuple[Union[str, _Node], int]


class _Parser:
    """Makes nodes of tokens, and counts the words it has read."""

    def __init__(self, source: str, tokens: Iterator[_Token]) -> None:
        self.source = source
        self.words = 0
        self._tokens = tokens
        self._depth = 0
        self._locals: List[str] = []

    def markup(self, token: _Token) -> _Markup:
        """Begin to read the inside of a token."""
        markup = _Markup(token.text, token.offset, tuple(self._locals))
        self.count(len(markup.lexemes), token)
        return markup

    def count(self, words: int, token: _Token) -> None:
        """Count words; raise LiquidError once the template has too many."""
        self.words += words
        if self.words > _MOST_WORDS:
            raise LiquidError(f"more than {_MOST_WORDS} words in a template's tags", token.start)

    def block(self, opener: Optional[_Token] = None, *ends: str) -> Tuple[_Node, _Token]:
        """Read up to one of the tags `ends`, or to the end of the template if there are none.

        `opener` is the tag that has to be closed.
        """
        pieces: List[_Piece] = []
        before = self.words
        for token in self._tokens:
            if token.kind == "text":
                pieces.append((token.text, token.start))
                continue
            self.count(1, token)
            if token.kind == "tag" and token.name in ends:
                return _sequence_of(pieces, self.words - before), token
            pieces.append((self._node(token), token.start))
        if opener is not None:
            raise LiquidError(f'tag "{opener.name}" not closed', opener.start)
        return _sequence_of(pieces, self.words - before), _Token("end", "", len(self.source))

    def loop(self, opener: _Token, names: Sequence[str], *ends: str) -> Tuple[_Node, _Token]:
        """Read the body of a loop, which has variables of its own."""
        self._locals += names
        found = self.block(opener, *ends)
        del self._locals[-len(names) :]
        return found

    def skip(self, opener: _Token) -> None:
        """Step over everything up to the end of `opener`."""
        for token in self._tokens:
            self.count(1, token)
            if token.kind == "broken":
                raise LiquidError(token.text, token.start)
            if token.name == "end" + opener.name:
                return
        raise LiquidError(f'tag "{opener.name}" not closed', opener.start)

    def lines(self, token: _Token) -> _Node:
        """Read the inside of a `liquid` tag: one tag a line."""
        outer, self._tokens = self._tokens, _line_tokens(token)
        body, _ = self.block()
        self._tokens = outer
        return body

    def _node(self, token: _Token) -> _Node:
        if token.kind == "broken":
            raise LiquidError(token.text, token.start)
        if token.kind == "output":
            return _output(self, token)
        parse = LIQUID_TAGS.get(token.name)
        if parse is None:
            raise LiquidError(f'tag "{token.name}" not found', token.start)
        self._depth += 1
        if self._depth > _DEEPEST_BLOCK:
            raise LiquidError("tags are nested too deeply", token.start)
        node = parse(self, token)
        self._depth -= 1
        return node


def _line_tokens(token: _Token) -> Iterator[_Token]:
    position = 0
    for line in token.text.split("\n"):
        if line.strip():
            indent = len(line) - len(line.lstrip())
            yield _tag(line, token.offset + position + indent, token.offset + position)
        position += len(line) + 1


def _sequence_of(pieces: Sequence[_Piece], words: int) -> _Node:
    """One node that runs all; an error from inside is told where it happened.

    It costs as much as it has words, whether or not all of them come into play.
    """
    cost = 1 + len(pieces) + words
    nodes: Sequence[Tuple[Any, int]] = pieces
    size = sum([len(text) for text, _ in pieces if isinstance(text, str)])

    def run(state: _Render) -> None:
        budget = state.budget
        budget.work -= cost
        budget.room -= size
        write, offset = state.out.append, -1
        try:
            if budget.work < 0 or budget.room < 0:
                budget.check()
            for node, offset in nodes:  # noqa: B007 - for the error
                if node.__class__ is str:
                    write(node)
                else:
                    node(state)
        except LiquidError as error:
            if error.offset < 0:
                error.offset = offset
            raise
        except _TROUBLE as error:
            raise LiquidError(str(error), offset) from error

    return run


# ---- tags


def _output(parser: _Parser, token: _Token) -> _Node:
    markup = parser.markup(token)
    read = markup.filtered()
    markup.end()

    def run(state: _Render) -> None:
        text = read(state)
        if text.__class__ is not str:
            text = state.text(text)
        budget = state.budget
        budget.room -= len(text)
        if budget.room < 0:
            budget.check()
        state.out.append(text)

    return run


def _echo_tag(parser: _Parser, token: _Token) -> _Node:
    return _output(parser, token) if token.text.strip() else _nothing


def _assign_tag(parser: _Parser, token: _Token) -> _Node:
    markup = parser.markup(token)
    name = markup.name()
    markup.expect("=")
    read = markup.filtered()
    markup.end()

    def run(state: _Render) -> None:
        state.assigned[name] = read(state)

    return run


def _capture_tag(parser: _Parser, token: _Token) -> _Node:
    name = token.text.strip().strip("'\"")
    if not re.match(r"[\w-]+\??\Z", name):
        raise LiquidError(f'unexpected "{name}"', token.offset)
    body, _ = parser.block(token, "endcapture")

    def run(state: _Render) -> None:
        state.assigned[name] = state.captured(body)

    return run


def _if_tag(parser: _Parser, token: _Token) -> _Node:
    """Parse `if` and `unless`, which is an `if` whose first condition is turned round."""
    closing, strict = "end" + token.name, token.name == "if"
    branches: List[Tuple[_Read, bool, _Node]] = []
    test, wanted = _test(parser, token), strict
    ends: Tuple[str, ...] = ("elsif", "else", closing)
    while True:
        body, end = parser.block(token, *ends)
        branches.append((test, wanted, body))
        _alone(parser, end)
        if end.name == closing:
            break
        if end.name == "else" and strict:  # the last one; in `unless`, more are never run
            ends = (closing,)
        test, wanted = _test(parser, end), True

    def run(state: _Render) -> None:
        for test, wanted, body in branches:
            if _truthy(test(state)) is wanted:
                return body(state)
        return None

    return run


def _test(parser: _Parser, token: _Token) -> _Read:
    if token.name == "else":
        return _Constant(True)
    markup = parser.markup(token)
    test = markup.filtered(lenient=True)
    markup.end()
    return test


def _alone(parser: _Parser, token: _Token) -> None:
    """Refuse what stands in an `else` or the end of a tag: `else if` is no branch (docs)."""
    if token.name not in ("elsif", "when") and token.text.strip():
        raise parser.markup(token).unexpected()


def _case_tag(parser: _Parser, token: _Token) -> _Node:
    markup = parser.markup(token)
    target = markup.filtered(lenient=True)
    markup.end()
    branches: List[Tuple[List[_Read], _Node]] = []
    others: List[_Node] = []
    _, end = parser.block(token, "when", "else", "endcase")
    elses = 0
    while end.name != "endcase":
        _alone(parser, end)
        choices = _choices(parser.markup(end)) if end.name == "when" else []
        elses += end.name == "else"
        body, end = parser.block(token, "when", "else", "endcase")
        if not elses:
            branches.append((choices, body))
        elif elses == 1:  # what follows belongs to it, even a `when` (LiquidJS)
            others.append(body)

    def run(state: _Render) -> None:
        value, found = target(state), False
        value = "" if isinstance(value, _Special) else value  # as LiquidJS has it
        for choices, body in branches:
            if any(_equal(state, value, read(state)) for read in choices):
                found = True
                body(state)
        for body in () if found else others:
            body(state)

    return run


def _choices(markup: _Markup) -> List[_Read]:
    """Read the values of a `when`; what follows them is ignored, as LiquidJS does."""
    choices = [markup.value(lenient=True)]
    while markup.accept(",", "or") and not markup.at_end():
        choices.append(markup.value(lenient=True))
    return choices


class _LoopHead(NamedTuple):
    """The inside of `for` and `tablerow`."""

    variable: str
    source: str
    collection: _Read
    options: Dict[str, _Read]
    reverse: bool
    resume: bool

    @property
    def name(self) -> str:
        """What `forloop.name` says, and what `offset: continue` goes by."""
        return f"{self.variable}-{self.source}"

    def items(self, state: _Render) -> Optional[List[Any]]:
        """Give the values to go through, this time; None if there are none at all."""
        value = self.collection(state)
        if isinstance(value, (list, dict)):
            state.spend(len(value) >> 4 if isinstance(value, list) else len(value))
        values = _loopable(value)
        if not values:
            return None
        before = state.places.get((self.name,))
        start = (before if self.resume else self.option(state, "offset")) or 0
        limit = self.option(state, "limit")
        chosen = values[start:] if limit is None else values[start:][:limit]
        if before is not None or not self.resume:  # nothing before it, nothing to go on (LiquidJS)
            state.places[(self.name,)] = start + len(chosen)
        return chosen[::-1] if self.reverse else chosen

    def option(self, state: _Render, name: str) -> Optional[int]:
        """Give a numeric option; None if it isn't set."""
        value = self.options[name](state) if name in self.options else None
        return None if value is None else _integer(value)


def _loop_head(markup: _Markup, allowed: Sequence[str]) -> _LoopHead:
    variable = markup.name()
    markup.expect("in")
    collection, source = markup.source_of(markup.value)
    options: Dict[str, _Read] = {}
    reverse = resume = False
    while not markup.at_end():
        if markup.accept("reversed"):
            reverse = True
        elif markup.sees(*allowed):
            name = markup.name()
            markup.expect(":")
            if name == "offset" and markup.accept("continue"):
                resume = True
            else:
                options[name] = markup.value()
        elif not markup.accept(","):
            raise markup.unexpected()
    return _LoopHead(variable, source, collection, options, reverse, resume)


def _for_tag(parser: _Parser, token: _Token) -> _Node:
    head = _loop_head(parser.markup(token), ("limit", "offset"))
    body, end = parser.loop(token, (head.variable, "forloop"), "else", "endfor")
    told = "forloop" in parser.source[token.start : end.start]
    otherwise: _Node = _nothing
    _alone(parser, end)
    if end.name == "else":
        otherwise, end = parser.block(token, "endfor")
        _alone(parser, end)

    def run(state: _Render) -> None:
        items = head.items(state)
        if items is None:
            return otherwise(state)
        loop = {"name": head.name, "length": len(items)} if told else None
        return _go_through(state, items, head.variable, "forloop", loop, body)

    return run


def _go_through(
    state: _Render,
    items: Sequence[Any],
    variable: str,
    name: str,
    loop: Optional[Dict[str, Any]],
    body: _Node,
) -> None:
    """Run a body for each item; `loop`, where it is asked for, tells of the current round."""
    outer, length, budget = state.loops, len(items), state.budget
    scope = state.loops = {**outer, name: loop}
    try:
        for index, item in enumerate(items):
            budget.iterations -= 1
            if budget.iterations < 0:
                budget.check()
            scope[variable] = item
            if loop is not None:
                loop["index"] = index + 1
                loop["index0"] = index
                loop["rindex"] = length - index
                loop["rindex0"] = length - index - 1
                loop["first"] = index == 0
                loop["last"] = index == length - 1
            try:
                body(state)
            except _Continue:
                continue
    except _Break:
        pass
    finally:
        state.loops = outer


def _tablerow_tag(parser: _Parser, token: _Token) -> _Node:
    head = _loop_head(parser.markup(token), ("limit", "offset", "cols"))
    body, end = parser.loop(token, (head.variable, "tablerowloop"), "endtablerow")
    _alone(parser, end)

    def run(state: _Render) -> None:
        items = head.items(state) or []
        columns = max(head.option(state, "cols") or len(items), 1)
        loop: Dict[str, Any] = {"name": head.name, "length": len(items)}
        cell = _cell(body, loop, columns)
        _go_through(state, items, head.variable, "tablerowloop", loop, cell)
        state.write("</tr>" if items else "")

    return run


def _cell(body: _Node, loop: Dict[str, Any], columns: int) -> _Node:
    """Make the node that writes one cell, and a row's beginning where it is the first in it."""

    def run(state: _Render) -> None:
        row, column = divmod(loop["index0"], columns)
        loop.update(row=row + 1, col=column + 1, col0=column)
        loop.update(col_first=column == 0, col_last=column == columns - 1)
        if not column:
            state.write(f'{"</tr>" if row else ""}<tr class="row{row + 1}">')
        state.write(f'<td class="col{column + 1}">')
        try:
            body(state)
        finally:
            state.write("</td>")

    return run


def _leaving(signal: Type[Exception]) -> Callable[[_Parser, _Token], _Node]:
    """Make the parser of `break` or `continue`."""

    def parse(parser: _Parser, token: _Token) -> _Node:
        parser.markup(token).end()

        def run(state: _Render) -> None:
            raise signal

        return run

    return parse


def _cycle_tag(parser: _Parser, token: _Token) -> _Node:
    markup = parser.markup(token)
    group: _Read = _Constant(None)
    first, source = markup.source_of(markup.filtered)
    values, sources = [first], [source]
    if markup.accept(":"):
        group, values, sources = first, [], []
    while not markup.at_end():
        if values:
            markup.expect(",")
        if not markup.at_end():
            value, source = markup.source_of(markup.filtered)
            values.append(value)
            sources.append(source)
    if not values:
        raise markup.unexpected()

    def run(state: _Render) -> None:
        key = (_text(group(state)), *sources)
        index = state.places.get(key, 0)
        state.places[key] = (index + 1) % len(values)
        value = values[index](state)
        if value or isinstance(value, (list, dict)):  # neither 0 nor false is printed (LiquidJS)
            state.write(state.text(value))

    return run


def _counter(step: int, prints_before: bool) -> Callable[[_Parser, _Token], _Node]:
    """Make the parser of `increment` or `decrement`, which count in the data (LiquidJS)."""

    def parse(parser: _Parser, token: _Token) -> _Node:
        markup = parser.markup(token)
        name = markup.name()
        markup.end()

        def run(state: _Render) -> None:
            value = state.data.get(name)
            before: Any = value if _is_number(value) else 0
            state.spend(len(state.data))
            state.data = {**state.data, name: _as_data(before + step)}
            state.write(_text(before if prints_before else state.data[name]))

        return run

    return parse


def _liquid_tag(parser: _Parser, token: _Token) -> _Node:
    return parser.lines(token)


def _nothing(_: _Render) -> None:
    """Write nothing."""


def _comment_tag(parser: _Parser, token: _Token) -> _Node:
    parser.skip(token)
    return _nothing


def _raw_tag(parser: _Parser, token: _Token) -> _Node:
    """The text of `raw` follows as a token of its own."""
    parser.markup(token).end()
    return _nothing


def _inline_comment_tag(_: _Parser, token: _Token) -> _Node:
    rest = [line.strip() for line in token.text.split("\n")[1:]]
    if any(line and not line.startswith("#") for line in rest):
        raise LiquidError("each line of a comment must begin with #", token.offset)
    return _nothing


#: Tags by name; each function reads what belongs to its tag.
LIQUID_TAGS: Dict[str, Callable[[_Parser, _Token], _Node]] = {
    "#": _inline_comment_tag,
    "assign": _assign_tag,
    "break": _leaving(_Break),
    "capture": _capture_tag,
    "case": _case_tag,
    "comment": _comment_tag,
    "continue": _leaving(_Continue),
    "cycle": _cycle_tag,
    "decrement": _counter(-1, prints_before=False),
    "echo": _echo_tag,
    "for": _for_tag,
    "if": _if_tag,
    "increment": _counter(1, prints_before=True),
    "liquid": _liquid_tag,
    "raw": _raw_tag,
    "tablerow": _tablerow_tag,
    "unless": _if_tag,
}


# ---- filters: text


def _on_text(function: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Make a filter of a function of a text."""
    return lambda value: function(_text(value))


_HTML_ESCAPES = {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord('"'): "&#34;",
    ord("'"): "&#39;",
}
_HTML_ENTITY = re.compile("&(?:amp|lt|gt|#34|#39);")
_HTML_SIGNS = {entity: chr(sign) for sign, entity in _HTML_ESCAPES.items()}


def _escape(text: str) -> str:
    return text.translate(_HTML_ESCAPES)


def _escape_once(text: str) -> str:
    return _escape(_HTML_ENTITY.sub(lambda match: _HTML_SIGNS[match[0]], text))


def _strip_html(state: _Render, value: Any) -> str:
    """Leave out scripts, styles, comments and tags that end; in one go, whatever the text."""
    text = _text(value)
    state.spend(2 * text.count("<"))
    ends = {"<script": "</script>", "<style": "</style>", "<!--": "-->", "<": ">"}
    kept, position = [], 0
    while "<" in ends:
        start = text.find("<", position)
        if start < 0:
            break
        kept.append(text[position:start])
        position = start
        for opening in [it for it in ends if text.startswith(it, start)]:
            end = text.find(ends[opening], start + len(opening))
            if end >= 0:
                position = end + len(ends[opening])
                break
            del ends[opening]
    return "".join(kept) + text[position:]


def _replace(state: _Render, value: Any, old: Any = "", new: Any = "", count: int = -1) -> str:
    text, old, new = _text(value), _text(old), _text(new)
    state.spend((len(text) >> 4) * (1 + (len(old) >> 8)))
    if not old and count < 0:
        return _join(list(text), new)
    times = text.count(old) if count < 0 else count
    if len(text) + times * len(new) > _LONGEST_TEXT:
        raise ValueError("the text grows too large")
    return text.replace(old, new, count)


def _replace_last(state: _Render, value: Any, old: Any = "", new: Any = "") -> str:
    text, old = _text(value), _text(old)
    state.spend((len(text) >> 4) * (1 + (len(old) >> 8)))
    at = text.rfind(old)
    return text if at < 0 else text[:at] + _text(new) + text[at + len(old) :]


def _split(state: _Render, value: Any, separator: Any = "") -> List[str]:
    """Cut a text up; empty parts at the end are left out, as Ruby does."""
    text, separator = _text(value), _text(separator)
    state.spend((len(text) >> 4) * (1 + (len(separator) >> 8)))
    parts = text.split(separator) if separator else list(text)
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _slice(value: Any, start: Any = 0, length: Any = None) -> Any:
    values = value if isinstance(value, list) else [] if value is None else _text(value)
    begin, count = _integer(start), 1 if length is None else _integer(length)
    begin = begin + len(values) if begin < 0 else begin
    return values[begin : begin + count] if begin >= 0 and count >= 0 else values[:0]


def _truncate(value: Any, length: Any = None, ellipsis: Any = None) -> Any:
    text, end = _text(value), "..." if ellipsis is None else _text(ellipsis)
    most = 50 if length is None else _integer(length, math.ceil)
    return value if len(text) <= max(most, 0) else text[: max(most - len(end), 0)] + end


def _truncatewords(value: Any, words: Any = None, ellipsis: Any = None) -> str:
    """The first words; the ellipsis follows even if there are no more of them (LiquidJS)."""
    parts, end = re.split(r"\s+", _text(value).lstrip()), "..." if ellipsis is None else ellipsis
    most = 15 if words is None else max(_integer(words), 1)
    return " ".join(parts[:most]) + (_text(end) if len(parts) >= most else "")


def _stripping(function: Callable[..., str]) -> Callable[..., str]:
    """Make a filter that takes white space, or given characters, off a text's ends."""
    return lambda value, characters=None: function(_text(value), _text(characters) or None)


def _extending(first: int, second: int) -> Callable[..., str]:
    """Make a filter of two texts, the only kind whose arguments are counted (LiquidJS)."""

    def apply(*texts: Any) -> str:
        if len(texts) != 2:
            raise ValueError("expect 2 arguments")
        return _text(texts[first]) + _text(texts[second])

    return apply


def _pluralize(value: Any, singular: Any = "", plural: Any = None) -> str:
    """The number with the word that goes with it: `3 | pluralize: "item", "items"` (docs)."""
    many = _text(singular) + "s" if plural is None else _text(plural)
    return f"{_text(value)} {_text(singular) if _number(value) == 1 else many}"


def _sentence(value: Any, connector: Any = "and") -> Any:
    items = _items(value)
    words = [_joined(item) for item in items]
    if len(words) < 2:
        return items[0] if items else ""
    if len(words) < 3:
        return f" {_text(connector)} ".join(words)
    return f"{', '.join(words[:-1])}, {_text(connector)} {words[-1]}"


#: What becomes a dash, by the mode of `slugify` (LiquidJS); marks belong to their letters.
_SLUG_GAPS = {
    "default": re.compile(r"(?:[\W_](?<![\u0300-\u036f]))+"),
    "raw": re.compile(r"\s+"),
    "pretty": re.compile(r"[^\w.~!$&'()+,;=@]+"),
    "ascii": re.compile(r"[^A-Za-z0-9]+"),
}


def _slugify(value: Any, mode: Any = "default", cased: Any = False) -> str:
    gaps, text = _SLUG_GAPS.get(mode) if isinstance(mode, str) else None, _text(value)
    if gaps:
        text = re.sub("^-|-$", "", gaps.sub("-", text))
    return text if cased else text.lower()


def _url_decoded(text: str) -> str:
    if re.search("%(?![0-9a-fA-F]{2})", text):
        raise ValueError("URI malformed")  # JavaScript's text
    return unquote_plus(text, errors="strict")


def _base64(function: Callable[[bytes], bytes]) -> Callable[[Any], str]:
    """Make a filter that encodes or decodes."""
    return lambda value: function(_text(value).encode()).decode(errors="replace")


def _base64_decoded(text: bytes) -> bytes:
    """Decode base64; its padding may be missing, but nothing else be in it."""
    signs = re.sub(rb"[\t\n\f\r ]", b"", text)
    signs = re.sub(rb"={1,2}\Z", b"", signs) if not len(signs) % 4 else signs
    if len(signs) % 4 == 1 or re.search(rb"[^A-Za-z0-9+/]", signs):
        raise ValueError("invalid base64")
    return base64.b64decode(signs + b"==")


def _hashing(algorithm: str) -> Callable[[Any], str]:
    return lambda value: hashlib.new(algorithm, _text(value).encode()).hexdigest()


def _signing(algorithm: str) -> Callable[..., str]:
    return lambda value, key="": hmac.new(
        _text(key).encode(), _text(value).encode(), algorithm
    ).hexdigest()


# ---- filters: numbers


def _calculating(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a filter of a function of two numbers."""
    return lambda value, other=_ABSENT: _as_data(function(_number(value), _operand(other)))


def _operand(value: Any) -> Any:
    return math.nan if value is _ABSENT else _number(value)


def _limiting(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: function([_number(value) for value in values])


def _quotient(value: Any, other: Any = _ABSENT, whole: Any = False) -> Any:
    """Exact, unless it is asked to round down; by zero it is infinite (LiquidJS)."""
    left, right = _number(value), _operand(other)
    if right == 0:
        return math.copysign(math.inf, left) if left else math.nan
    exact = left / right
    return _as_data(math.floor(exact) if _number(whole) and math.isfinite(exact) else exact)


def _modulo(value: Any, other: Any = _ABSENT) -> Any:
    """Never negative (docs)."""
    left, right = _number(value), abs(_operand(other))
    if not right or not math.isfinite(left):
        return math.nan
    exact = isinstance(left, int) and isinstance(right, int)
    return _as_data(left % right if exact else math.fmod(math.fmod(left, right) + right, right))


def _to_integer(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        number = _number(value)
        return _as_data(function(number)) if math.isfinite(number) else number

    return apply


def _round(value: Any, places: Any = 0) -> Any:
    """Half away from zero, by the number as it is written (LiquidJS)."""
    number, digits = _number(value), _number(places)
    if not math.isfinite(number) or digits != int(digits) or abs(digits) > 30:
        return number
    scaled = _shifted_by(abs(number), int(digits))
    if scaled > _MOST_EXACT:
        return number
    rounded = _shifted_by(math.floor(scaled + 0.5), -int(digits))
    return _as_data(-rounded if number < 0 else rounded)


def _shifted_by(number: Any, digits: int) -> float:
    mantissa, _, power = repr(number).partition("e")
    return float(f"{mantissa}e{int(power or 0) + digits}")


def _rounded(number: Any, digits: int) -> Any:
    """A number rounded half away from zero, as a Decimal."""
    from decimal import ROUND_HALF_UP, Decimal

    return _exact(number).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


# ---- filters: arrays

_KEY = re.compile(r"""[^\s.\[\]"']+""")


def _names_in(key: Any) -> List[str]:
    """The names in a path given as text, such as `a.b` or `a["b"]`."""
    return _KEY.findall(_text(key))


def _judging(answer: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make a filter such as `where: key` or `where: key, target`."""

    def apply(state: _Render, value: Any, key: Any = "", target: Any = None) -> Any:
        path, judged = _names_in(key), []
        for item in _items(value):
            found = _reached(item, path)
            hit = _truthy(found) if target is None else _equal(state, found, target)
            judged.append((item, hit))
        return answer(judged)

    return apply


def _hits(judged: Iterable[Tuple[Any, Any]]) -> List[Any]:
    return [item for item, hit in judged if hit is True]


def _misses(judged: Iterable[Tuple[Any, Any]]) -> List[Any]:
    return [item for item, hit in judged if hit is False]


def _first_hit(judged: Iterable[Tuple[Any, Any]]) -> Any:
    return next((item for item, hit in judged if hit), None)


def _index_of_hit(judged: Iterable[Tuple[Any, Any]]) -> Any:
    return next((index for index, (_, hit) in enumerate(judged) if hit), None)


def _any_hit(judged: Iterable[Tuple[Any, Any]]) -> bool:
    return any(hit for _, hit in judged)


def _evaluating(
    answer: Callable[[List[Tuple[Any, Any]]], Any], items: Callable[[Any], List[Any]] = _items
) -> Callable[..., Any]:
    """Make a filter such as `where_exp: "item", "item.price > 10"`."""

    def apply(state: _Render, value: Any, name: Any = "", expression: Any = "") -> Any:
        return answer(_evaluated(state, items(value), _text(name), _text(expression)))

    return apply


def _evaluated(
    state: _Render, items: List[Any], name: str, expression: str
) -> List[Tuple[Any, Any]]:
    """The items, each with the value of an expression given as text, in which it is `name`."""
    state.spend(len(expression))
    markup = _Markup(expression, locals=(*state.loops, name))
    cost = len(markup.lexemes)
    state.spend(4 * cost)
    read = markup.filtered()
    markup.end()
    outer = state.loops
    state.loops = {**outer}
    pairs = []
    try:
        for item in items:
            state.spend(cost)
            state.loops[name] = item
            pairs.append((item, read(state)))
    finally:
        state.loops = outer
    return pairs


def _identity(value: Any) -> Any:
    """Something hashable that is the same for the same values only."""
    if isinstance(value, (list, dict)):
        return (list, id(value))
    return (isinstance(value, bool), value)


def _grouped(pairs: Iterable[Tuple[Any, Any]]) -> List[Any]:
    groups: Dict[Any, Dict[str, Any]] = {}
    for item, name in pairs:
        group = groups.setdefault(_identity(name), {"name": name, "items": []})
        group["items"].append(item)
    return list(groups.values())


def _group_by(value: Any, key: Any = "") -> List[Any]:
    path = _names_in(key)
    return _grouped([(item, _reached(item, path)) for item in _loopable(value)])


def _map(value: Any, key: Any = "") -> List[Any]:
    path = _text(key).split(".")
    return [_reached(item, path) for item in _items(value)]


def _uniq(value: Any) -> List[Any]:
    seen: Dict[Any, Any] = {}
    for item in _items(value):
        seen.setdefault(_identity(item), item)
    return list(seen.values())


def _sorting(
    order: Callable[[List[Any]], Callable[[Any], Any]], moves_nil: bool
) -> Callable[..., List[Any]]:
    """Make a filter that sorts by a property.

    The items without it come last, or keep all others from moving, as `sort` has it (docs).
    """

    def apply(state: _Render, value: Any, key: Any = None) -> List[Any]:
        items = _items(value)
        parts = _map(items, key) if key else items
        known = [(part, item) for part, item in zip(parts, items) if part is not None]
        if len(known) < len(items) and not moves_nil:
            return items
        key_of = order([part for part, _ in known])
        state.spend(len(known) * (20 if key_of is _Sortable else 2))
        known.sort(key=lambda pair: key_of(pair[0]))
        return [item for _, item in known] + [it for p, it in zip(parts, items) if p is None]

    return apply


class _Sortable:
    """A value in JavaScript's order, in which what can't be compared stays where it is."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: Any) -> bool:
        left, right = [
            _joined(it) if isinstance(it, (list, dict)) else it for it in (self.value, other.value)
        ]
        if isinstance(left, str) and isinstance(right, str):
            return left < right
        return bool(_number(left, math.nan) < _number(right, math.nan))


def _natural(parts: List[Any]) -> Callable[[Any], Any]:
    """The order of values: their own, if all are texts or all are numbers."""
    alike = {str if isinstance(part, str) else _is_number(part) for part in parts}
    return _Sortable if False in alike or len(alike) > 1 else lambda part: part


def _caseless(_: List[Any]) -> Callable[[Any], Any]:
    return lambda part: _joined(part).lower()


def _join(value: Any, separator: Any = None) -> str:
    texts = [_joined(item) for item in _items(value)]
    between = " " if separator is None else _text(separator)
    if len(texts) * len(between) > _LONGEST_TEXT:
        raise ValueError("the text grows too large")
    return between.join(texts)


def _checked(values: List[Any]) -> List[Any]:
    """A list put together from others; ValueError if there is too much in it, deep."""
    if _weight(values) > _LARGEST_LIST:
        raise ValueError("the list grows too large")
    return values


def _sum(value: Any, key: Any = None) -> Any:
    return _as_data(sum([_number(it) for it in (_map(value, key) if key else _items(value))]))


# ---- filters: dates

_ISO_MOMENT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})(?:[Tt ]([0-9]{2}):([0-9]{2})"
    r"(?::([0-9]{2}(?:\.[0-9]{1,9})?))?)?\s{0,3}(Z|z|UTC|[+-][0-9]{2}:?[0-9]{2})?\Z"
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
#: Hours from UTC of the zones that JavaScript knows by name.
_ZONE_WORDS = {
    "utc": 0, "ut": 0, "gmt": 0, "z": 0, "est": -5, "edt": -4, "cst": -6, "cdt": -5,
    "mst": -7, "mdt": -6, "pst": -8, "pdt": -7,
}  # fmt: skip


def _moment(state: _Render, value: Any) -> Optional[datetime]:
    """The time a value means, in UTC; None if it means none."""
    state.spend(50)
    if value in ("now", "today"):
        value = state.now
    if isinstance(value, bool):
        value = value / 1000
    if isinstance(value, (str, list)):
        text = _joined(value)
        seconds = float(text) if re.fullmatch("[0-9]{1,20}", text) else _written_seconds(text)
        return None if seconds is None else _utc(seconds)
    return _utc(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _utc(seconds: float) -> datetime:
    return moment_of(math.floor(seconds * 1000) / 1000)


def _iso_seconds(text: str) -> Optional[float]:
    """Unix seconds of a date in ISO 8601, in UTC unless it says otherwise; None if it is none."""
    match = _ISO_MOMENT.match(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, zone = match.groups()
    seconds = _seconds(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), float(second or 0)
    )
    if seconds is None or not zone or zone[0] in "ZzU":
        return seconds
    return seconds - (1 if zone[0] == "+" else -1) * (int(zone[1:3]) * 60 + int(zone[-2:])) * 60


def _seconds(
    year: int, month: int, day: int, hour: int, minute: int, second: float
) -> Optional[float]:
    """Unix seconds; None if there is no such time. A day too many is the next month's first."""
    if not (0 < month < 13 and 0 < day < 32 and 0 < year < 10000 and minute < 60 > second):
        return None
    if hour > 24 or (hour == 24 and (minute or second)):
        return None
    days = datetime(year, month, 1).toordinal() - _EPOCH.toordinal() + day - 1
    return days * 86400 + hour * 3600 + minute * 60 + second


def _written_seconds(text: str) -> Optional[float]:
    """Read a date as JavaScript's `Date` does: ISO 8601, and nearly anything in English."""
    if len(text) > 100:
        return None
    seconds = _iso_seconds(text.strip())
    return _WrittenDate(text).seconds() if seconds is None else seconds


class _WrittenDate:
    """A date in words, read from left to right by the rules of V8's own parser."""

    def __init__(self, text: str) -> None:
        self.days: List[int] = []
        self.times: List[float] = []
        self.month = self.half = 0
        self.zone: Optional[int] = None
        self.is_date = True
        self._rest = text.lower()
        while self._rest and self.is_date:
            self._step()

    def seconds(self) -> Optional[float]:
        """Give the Unix seconds; None if the text is no date."""
        if not self.is_date or not 0 < len(self.days) < 4:
            return None
        first, second, third = (*self.days, 1, 1)[:3]
        if self.month:
            day, year = (first, second) if 0 < first < 32 else (second, first)
            month = self.month
        else:
            monthly = 0 < first < 32
            month, day, year = (first, second, third) if monthly else (second, third, first)
        year += 2000 if year < 50 else 1900 if year < 100 else 0
        hour, minute, rest = (*self.times, 0, 0, 0)[:3]
        if self.half:
            hour = hour % 12 + self.half - 1 if 0 < hour < 13 or not hour else 99
        seconds = _seconds(year, month, day, int(hour), int(minute), rest)
        return None if seconds is None else seconds - (self.zone or 0) * 60

    def _taken(self, pattern: str) -> Optional[Match[str]]:
        match = re.match(pattern, self._rest)
        self._rest = self._rest[match.end() :] if match else self._rest
        return match

    def _step(self) -> None:
        begun = bool(self.days or self.times)
        time = self._taken(
            r"([0-9]{1,9}):([0-9]{1,9})(?::([0-9]{1,9}(?:\.[0-9]{1,9})?))?(?=[\sz+-]|$)"
        )
        if time:
            self.is_date = not self.times
            self.times = [float(part or 0) for part in time.groups()]
        elif found := self._taken(r"([0-9]{1,9})-?"):
            self.days.append(int(found[1]))
        elif found := self._taken(r"([^\x00-@\s]+)"):
            self._word(found[1], begun)
        elif (self.times or self.zone == 0) and (
            found := self._taken(r"([+-])([0-9]{1,2}):?([0-9]{2})?(?![0-9])")
        ):
            minutes = int(found[2]) * 60 + int(found[3] or 0)
            self.zone = -minutes if found[1] == "-" else minutes
        elif not self._taken(r"\([^()]*\)?|\s+"):
            self.is_date = not (begun and self._rest[0] in "+-)")
            self._rest = self._rest[1:]

    def _word(self, word: str, begun: bool) -> None:
        if word[:3] in _MONTH_NUMBERS:
            self.month = _MONTH_NUMBERS[word[:3]]
            self._taken("-")
        elif word in ("am", "pm") and self.times:
            self.half = 1 if word == "am" else 13
        elif word in _ZONE_WORDS and begun:
            self.zone = _ZONE_WORDS[word] * 60
        else:  # before the date, anything may stand
            self.is_date = not begun and not self._rest[:1].isdigit()


_MONTH_NUMBERS = {name[:3].lower(): number for number, name in enumerate(_MONTHS, 1)}


def _offset(text: str) -> timezone:
    """A zone from `-05:00`."""
    minutes = int(text[1:3]) * 60 + int(text[-2:])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _zone(value: Any) -> Any:
    """A zone from its name, an offset, "(GMT-11:00) Hawaii", or minutes west of UTC (docs)."""
    text = _text(value)
    if re.match(r"-?\d{1,4}\Z", text):
        return timezone(timedelta(minutes=-int(text)))
    detailed = re.match(r"(?:\(?(?:GMT|UTC))?([+-]\d\d:?\d\d)(?:\)|\Z)", text)
    return _offset(detailed.group(1)) if detailed else _named_zone(text)


def _named_zone(name: str) -> Any:
    from zoneinfo import ZoneInfo

    try:
        if not re.match(r"[A-Za-z][\w+/-]{0,60}\Z", name):
            raise ValueError
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError):
        raise LiquidError(f"unknown time zone '{name}'") from None


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _utc_offset(moment: datetime, colon: str = "") -> str:
    minutes = round((moment.utcoffset() or timedelta()).total_seconds() / 60)
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02d}{colon}{rest:02d}"


def _zone_name(moment: datetime) -> str:
    name = moment.tzname() or ""
    return _utc_offset(moment) if name[:3] == "UTC" and name != "UTC" else name


#: Directives of a date format: the value, and the width and padding it gets by default.
_DIRECTIVES: Dict[str, Tuple[Callable[[datetime], Any], int, str]] = {
    "a": (lambda t: _WEEKDAYS[t.weekday()][:3], 0, " "),
    "A": (lambda t: _WEEKDAYS[t.weekday()], 0, " "),
    "b": (lambda t: _MONTHS[t.month - 1][:3], 0, " "),
    "B": (lambda t: _MONTHS[t.month - 1], 0, " "),
    "c": (lambda t: f"{_american(t)}, {_clock(t)}", 0, " "),
    "C": (lambda t: t.year // 100, 2, "0"),
    "d": (lambda t: t.day, 2, "0"),
    "e": (lambda t: t.day, 2, " "),
    "h": (lambda t: _MONTHS[t.month - 1][:3], 0, "0"),
    "H": (lambda t: t.hour, 2, "0"),
    "I": (lambda t: t.hour % 12 or 12, 2, "0"),
    "j": (lambda t: t.timetuple().tm_yday, 3, "0"),
    "k": (lambda t: t.hour, 2, " "),
    "l": (lambda t: t.hour % 12 or 12, 2, " "),
    "L": (lambda t: t.microsecond // 1000, 3, "0"),
    "m": (lambda t: t.month, 2, "0"),
    "M": (lambda t: t.minute, 2, "0"),
    "n": (lambda t: "\n", 0, "0"),
    "p": (lambda t: "AM" if t.hour < 12 else "PM", 0, " "),
    "P": (lambda t: "am" if t.hour < 12 else "pm", 0, " "),
    "q": (lambda t: _ordinal(t.day), 0, "0"),
    "s": (lambda t: math.floor(t.timestamp()), 0, "0"),
    "S": (lambda t: t.second, 2, "0"),
    "t": (lambda t: "\t", 0, "0"),
    "u": (lambda t: t.isoweekday(), 0, "0"),
    "U": (lambda t: (t.timetuple().tm_yday + 6 - t.isoweekday() % 7) // 7, 2, "0"),
    "w": (lambda t: t.isoweekday() % 7, 0, "0"),
    "W": (lambda t: (t.timetuple().tm_yday + 6 - t.weekday()) // 7, 2, "0"),
    "x": (lambda t: _american(t), 0, "0"),
    "X": (lambda t: _clock(t), 0, "0"),
    "y": (lambda t: t.year % 100, 2, "0"),
    "Y": (lambda t: t.year, 4, "0"),
    "z": (_utc_offset, 0, "0"),
    "Z": (_zone_name, 0, "0"),
    "%": (lambda t: "%", 0, "0"),
}
_DIRECTIVE = re.compile(r"%([-_0^#:]*)(\d{0,9})[EO]?(.)")


def _american(moment: datetime) -> str:
    return f"{moment.month}/{moment.day}/{moment.year}"


def _clock(moment: datetime) -> str:
    half = "AM" if moment.hour < 12 else "PM"
    return f"{moment.hour % 12 or 12}:{moment.minute:02d}:{moment.second:02d} {half}"


def _formatted(state: _Render, moment: datetime, pattern: str) -> str:
    """A time in a format as LiquidJS's strftime writes it, in English."""

    def part(match: Match[str]) -> str:
        flags, width, letter = match.groups()
        state.spend(5 + int(width or 0))
        if letter == "N":  # to the millisecond, as JavaScript's dates go
            digits = f"{moment.microsecond // 1000:03d}"[: int(width or 9)]
            return digits.ljust(int(width or 9), "0")
        if letter not in _DIRECTIVES:
            return match[0]
        function, usual, padding = _DIRECTIVES[letter]
        text = _utc_offset(moment, ":") if letter == "z" and ":" in flags else function(moment)
        return _padded(str(text), flags, int(width or usual), padding)

    return _DIRECTIVE.sub(part, pattern)


def _padded(text: str, flags: str, width: int, padding: str) -> str:
    if "^" in flags:
        text = text.upper()
    elif "#" in flags:
        text = text.upper() if any("a" <= sign <= "z" for sign in text) else text.lower()
    if "-" in flags:
        return text
    fill = " " if "_" in flags else "0" if "0" in flags else padding
    if fill == "0" and text[:1] == "-":
        return "-" + text[1:].rjust(width - 1, "0")
    return text.rjust(width, fill)


_USUAL_DATE = "%A, %B %-e, %Y at %-l:%M %P %z"


def _date_filter(state: _Render, value: Any, pattern: Any = None, zone: Any = None) -> Any:
    """A time in a format, in a time zone; what is no time stays as it is."""
    moment = _moment(state, value)
    if moment is None:
        return value
    moment = moment if zone is None else moment.astimezone(_zone(zone))
    return _formatted(state, moment, _USUAL_DATE if pattern is None else _text(pattern))


def _date_as(plain: str, british: str, american: str) -> Callable[..., Any]:
    """Make `date_to_string` and the like, which know three ways to write a date."""

    def apply(state: _Render, value: Any, style: Any = "", country: Any = "") -> Any:
        ordinal = american if country == "US" else british
        return _date_filter(state, value, ordinal if style == "ordinal" else plain)

    return apply


def _shifting(unit: str, sign: int) -> Callable[..., Any]:
    """Make `add_day` and the like: a time in, Unix seconds out."""

    def apply(state: _Render, value: Any, count: Any = 0) -> Any:
        moment = _moment(state, value)
        if moment is None:
            return value
        return math.floor(_shifted(moment, unit, sign * _integer(count)).timestamp())

    return apply


def _shifted(moment: datetime, unit: str, count: int) -> datetime:
    if unit not in ("month", "year"):
        return moment + timedelta(**{unit + "s": count})
    months = moment.year * 12 + moment.month - 1 + count * (12 if unit == "year" else 1)
    first = moment.replace(year=months // 12, month=months % 12 + 1, day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    return first.replace(day=min(moment.day, (following - timedelta(days=1)).day))


def _timezone(state: _Render, value: Any, zone: Any = "") -> Any:
    """Legacy: the same time elsewhere, for `date` to format as if it were in UTC."""
    moment = _moment(state, value)
    if moment is None:
        return value
    return moment.astimezone(_zone(zone)).replace(tzinfo=None).isoformat()


_TIME_UNITS = ("second", "minute", "hour", "day", "week", "month", "year")


# ---- filters: the rest


def _default(value: Any, fallback: Any = "", *, allow_false: Any = False) -> Any:
    if value is False:
        return value if _truthy(allow_false) else fallback
    nothing = value is None or value.__class__ is _Special or (value in ("", []))
    return fallback if nothing else value


#: Filters by name. The first parameter is the value (after `state`, for those that need the
#: rendering); the others are the filter's arguments, and those after `*` its options.
LIQUID_FILTERS: Dict[str, Callable[..., Any]] = {
    "abs": lambda value: abs(_number(value)),
    "append": _extending(0, 1),
    "array_to_sentence_string": _sentence,
    "at_least": _limiting(max),
    "at_most": _limiting(min),
    "base64_decode": lambda value: _base64_decoded(_text(value).encode()).decode(errors="replace"),
    "base64_encode": _base64(base64.b64encode),
    "capitalize": _on_text(lambda text: text[:1].upper() + text[1:].lower()),
    "ceil": _to_integer(math.ceil),
    "cgi_escape": _on_text(lambda text: quote_plus(text)),
    "compact": lambda value: [item for item in _items(value) if item is not None],
    "concat": lambda value, more=None: _checked(_items(value) + _items(more)),
    "date": _date_filter,
    "date_to_long_string": _date_as("%d %B %Y", "%-d%q %B %Y", "%B %-d%q, %Y"),
    "date_to_rfc822": _date_as(*["%a, %d %b %Y %H:%M:%S %z"] * 3),
    "date_to_string": _date_as("%d %b %Y", "%-d%q %b %Y", "%b %-d%q, %Y"),
    "date_to_xmlschema": _date_as(*["%Y-%m-%dT%H:%M:%S%:z"] * 3),
    "default": _default,
    "divided_by": _quotient,
    "downcase": _on_text(str.lower),
    "escape": _on_text(_escape),
    "escape_once": _on_text(_escape_once),
    "find": _judging(_first_hit),
    "find_exp": _evaluating(_first_hit),
    "find_index": _judging(_index_of_hit),
    "find_index_exp": _evaluating(_index_of_hit),
    "first": _first,
    "floor": _to_integer(math.floor),
    "group_by": _group_by,
    "group_by_exp": _evaluating(_grouped, _loopable),
    "has": _judging(_any_hit),
    "has_exp": _evaluating(_any_hit),
    "inspect": _json,
    "join": _join,
    "json": _json,
    "jsonify": _json,
    "last": _last,
    "lstrip": _stripping(str.lstrip),
    "map": _map,
    "minus": _calculating(operator.sub),
    "modulo": _modulo,
    "newline_to_br": _on_text(lambda text: re.sub(r"\r?\n", "<br />\n", text)),
    "normalize_whitespace": _on_text(lambda text: re.sub(r"\s+", " ", text)),
    "number_of_words": _on_text(lambda text: len(text.split())),
    "plus": _calculating(operator.add),
    "pop": lambda value: _items(value)[:-1],
    "prepend": _extending(1, 0),
    "push": lambda value, item=None: _checked([*_items(value), item]),
    "raw": lambda value: value,
    "reject": _judging(_misses),
    "reject_exp": _evaluating(_misses),
    "remove": lambda state, value, old="": _replace(state, value, old),
    "remove_first": lambda state, value, old="": _replace(state, value, old, "", 1),
    "remove_last": lambda state, value, old="": _replace_last(state, value, old),
    "replace": lambda state, value, old="", new="": _replace(state, value, old, new),
    "replace_first": lambda state, value, old="", new="": _replace(state, value, old, new, 1),
    "replace_last": _replace_last,
    "reverse": lambda value: _items(value)[::-1],
    "round": _round,
    "rstrip": _stripping(str.rstrip),
    "shift": lambda value: _items(value)[1:],
    "size": _size,
    "slice": _slice,
    "slugify": _slugify,
    "sort": _sorting(_natural, moves_nil=False),
    "sort_natural": _sorting(_caseless, moves_nil=True),
    "split": _split,
    "squish": _on_text(lambda text: " ".join(text.split())),
    "strip": _stripping(str.strip),
    "strip_html": _strip_html,
    "strip_newlines": _on_text(lambda text: re.sub(r"\r?\n", "", text)),
    "sum": _sum,
    "times": _calculating(operator.mul),
    "to_integer": lambda value: _number(value, math.nan),
    "truncate": _truncate,
    "truncatewords": _truncatewords,
    "uniq": _uniq,
    "unshift": lambda value, item=None: _checked([item, *_items(value)]),
    "upcase": _on_text(str.upper),
    "uri_escape": _on_text(lambda text: quote(text, safe="!#$&'()*+,-./:;=?@_~[]")),
    "url_decode": _on_text(_url_decoded),
    "url_encode": _on_text(lambda text: quote_plus(text, safe="!'()*")),
    "where": _judging(_hits),
    "where_exp": _evaluating(_hits),
    "xml_escape": _on_text(_escape),
}


# ---- what Customer.io adds (docs: the list of its tags, keys and filters)

#: Namespaces whose texts are templates themselves, with variables of their own.
_RENDERED_NAMESPACES = frozenset({"snippets"})


def _rendered(read: _Read) -> _Read:
    def rendered(state: _Render) -> Any:
        value = read(state)
        return state.include(value, own=True) if isinstance(value, str) and "{" in value else value

    return rendered


#: Tags the world outside answers, and what they print if it doesn't.
_HOST_TAGS = {
    "cio_link": "",
    "cio_link_id": "",
    "countdown": "",
    "generate_uuid": "00000000-0000-4000-8000-000000000000",
    "manage_subscription_preferences_url": "",
    "random": "0",
    "subscription_topic_name": "",
    "tracking_consent_url": "",
    "unsubscribe": "",
    "unsubscribe_url": "",
    "view_in_browser": "",
    "view_in_browser_url": "",
}
_TAG_ARGUMENT = re.compile(
    r"""(?:(\w+)\s*[:=]\s*)?("[^"]*"|'[^']*'|(?:\{\{[^{}]*\}\}|[^\s{]|\{(?!\{))+)"""
)


def _host_tag(parser: _Parser, token: _Token) -> _Node:
    """Parse `name:value` and `name=value`; a value may be unquoted, and hold outputs."""
    values = {match[0] or "value": match[1] for match in _TAG_ARGUMENT.findall(token.text)}
    parser.count(len(values), token)

    def run(state: _Render) -> None:
        arguments = {name: _argument(state, value) for name, value in values.items()}
        state.spend(10)
        state.write(_text(_host_answer(state, token.name, arguments)))

    return run


def _argument(state: _Render, text: str) -> str:
    bare = text[1:-1] if text[0] in "\"'" and text[-1] == text[0] else text
    return state.include(bare) if "{{" in bare else bare


def _host_answer(state: _Render, name: str, arguments: Mapping[str, Any]) -> Any:
    """What the host says; a link without a host leads where it says itself."""
    answer = state.host.get(name, arguments.get("url", _HOST_TAGS[name]))
    return answer(arguments) if callable(answer) else answer


def _render_liquid_tag(parser: _Parser, token: _Token) -> _Node:
    """Parse `render_liquid path`: the text there is a template."""
    markup = parser.markup(token)
    read = markup.filtered()
    markup.end()

    def run(state: _Render) -> None:
        state.out.append(state.include(state.text(read(state))))

    return run


LIQUID_TAGS.update(dict.fromkeys(_HOST_TAGS, _host_tag))
LIQUID_TAGS["render_liquid"] = _render_liquid_tag


class _Locale(NamedTuple):
    """How numbers are written; `pattern` places the amount (n) and the currency's sign (s)."""

    group: str
    point: str
    currency: str
    pattern: str = "{s}{n}"


_TRAILING = "{n}\xa0{s}"
#: By lower-case tag; what isn't listed is looked up by its language, then written as English.
_LOCALES = {
    "en": _Locale(",", ".", "USD"),
    "en-au": _Locale(",", ".", "AUD"),
    "en-ca": _Locale(",", ".", "CAD"),
    "en-gb": _Locale(",", ".", "GBP"),
    "en-in": _Locale(",", ".", "INR"),
    "da": _Locale(".", ",", "DKK", _TRAILING),
    "de": _Locale(".", ",", "EUR", _TRAILING),
    "de-ch": _Locale("\u2019", ".", "CHF", "{s}\xa0{n}"),
    "es": _Locale(".", ",", "EUR", _TRAILING),
    "es-mx": _Locale(",", ".", "MXN"),
    "fr": _Locale("\u202f", ",", "EUR", _TRAILING),
    "it": _Locale(".", ",", "EUR", _TRAILING),
    "ja": _Locale(",", ".", "JPY"),
    "nl": _Locale(".", ",", "EUR", "{s}\xa0{n}"),
    "pl": _Locale("\xa0", ",", "PLN", _TRAILING),
    "pt": _Locale(".", ",", "BRL", "{s}\xa0{n}"),
    "pt-pt": _Locale("\xa0", ",", "EUR", _TRAILING),
    "sv": _Locale("\xa0", ",", "SEK", _TRAILING),
    "zh": _Locale(",", ".", "CNY"),
}
_CURRENCY_SIGNS = {
    "USD": "$",
    "EUR": "€",
    "GBP": "£",
    "JPY": "¥",
    "CNY": "¥",
    "INR": "₹",
    "KRW": "₩",
    "AUD": "A$",
    "CAD": "CA$",
    "MXN": "$",
    "BRL": "R$",
}
_WITHOUT_CENTS = frozenset({"JPY", "KRW"})


def _locale(name: Any) -> _Locale:
    tag = _text(name).lower().replace("_", "-")
    return _LOCALES.get(tag) or _LOCALES.get(tag.split("-")[0]) or _LOCALES["en"]


def _digits(number: Any, places: int, locale: _Locale) -> str:
    """A number that isn't negative, with separators."""
    whole, _, rest = f"{_rounded(number, places):,f}".partition(".")
    return whole.replace(",", locale.group) + (locale.point + rest if rest else "")


def _format_number(value: Any, locale: Any = "en") -> str:
    number, where = _number(value), _locale(locale)
    places = min(max(-_exact(number).as_tuple().exponent, 0), 3)
    return ("-" if number < 0 else "") + _digits(abs(number), places, where)


def _money(value: Any, locale: Any, currency: Any, most_places: int = 2) -> str:
    number, where = _number(value), _locale(locale)
    code = _text(currency).upper() or where.currency
    places = 0 if code in _WITHOUT_CENTS else most_places
    amount = _digits(abs(number), places, where)
    sign = _CURRENCY_SIGNS.get(code, code + "\xa0")
    return ("-" if number < 0 else "") + where.pattern.format(n=amount, s=sign)


def _random(state: _Render, value: Any) -> Any:
    return _number(_text(_host_answer(state, "random", {"value": _text(value)})))


LIQUID_FILTERS.update(
    {
        "base64": _base64(base64.b64encode),
        "contains": _contains,
        "currency": lambda value, locale="en", code="": _money(value, locale, code),
        "format_number": _format_number,
        "from_json": lambda value: json.loads(_text(value)),
        "hex_base64": _base64(lambda text: base64.b64encode(bytes.fromhex(text.decode()))),
        "hmac_sha1": _signing("sha1"),
        "hmac_sha256": _signing("sha256"),
        "htmlencode": _on_text(_escape),  # legacy
        "json_array_uniq": _uniq,
        "limit": lambda value, count=0: _items(value)[: max(_integer(count), 0)],
        "md5": _hashing("md5"),
        "pluralize": _pluralize,
        "random": _random,
        "rounded_currency": lambda value, locale="en", code="": _money(value, locale, code, 0),
        "sha1": _hashing("sha1"),
        "sha256": _hashing("sha256"),
        "timezone": _timezone,  # legacy
        "titlecase": _on_text(
            lambda text: " ".join([word.capitalize() for word in text.split(" ")])
        ),
        "to_json": _json,
        "where_not": _judging(_misses),
        **{f"add_{unit}": _shifting(unit, 1) for unit in _TIME_UNITS},
        **{f"subtract_{unit}": _shifting(unit, -1) for unit in _TIME_UNITS},
    }
)


# ======================================================================================
# ==== §6 Conditions
# ======================================================================================


class Subject(Protocol):
    """Whom a filter looks at: a person or an object."""

    def text(self, name: str) -> Optional[str]:
        """One attribute as text; None if it is not set."""


#: Whether somebody is in the segment with this number.
Member = Callable[[Any, int], bool]
#: A compiled filter.
Predicate = Callable[[Any], bool]
#: Something that a condition depends on: ("attribute", "plan"), ("event", "order_placed"), …
Need = Tuple[str, Any]
#: The times to come, Unix seconds, at which a condition may turn without anything happening.
Turns = Callable[[Any], Iterable[float]]
#: From when on what happens counts: Unix seconds, and how many events there had been by then.
Begin = Tuple[float, int]


def _as_number(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None


def _compare(have: str, want: str) -> int:
    """-1, 0 or 1: as numbers where both are, else as text without case, as segments do (docs)."""
    left, right = _as_number(have), _as_number(want)
    if left is not None and right is not None:
        return (left > right) - (left < right)
    return (have.casefold() > want.casefold()) - (have.casefold() < want.casefold())


def _is_same(have: Optional[str], want: str) -> bool:
    return have is not None and have.casefold() == want.casefold()


def _has_part(have: Optional[str], want: str) -> bool:
    return have is not None and want.casefold() in have.casefold()


# `eq` and `exists` are the reference's, those with a `!` and `bw` are seen in what the web app
# stores (observed); the others stand in the seeds' list.
OPERATORS: Dict[str, Callable[[Optional[str], Any], bool]] = {
    "eq": _is_same,
    "ne": lambda have, want: not _is_same(have, want),
    "!eq": lambda have, want: not _is_same(have, want),
    "exists": lambda have, want: have is not None,
    "not_exists": lambda have, want: have is None,
    "!exists": lambda have, want: have is None,
    "starts_with": lambda have, want: (
        have is not None and have.casefold().startswith(want.casefold())
    ),
    "ends_with": lambda have, want: have is not None and have.casefold().endswith(want.casefold()),
    "contains": _has_part,
    "!contains": lambda have, want: not _has_part(have, want),
    "gt": lambda have, want: have is not None and _compare(have, want) > 0,
    "gte": lambda have, want: have is not None and _compare(have, want) >= 0,
    "lt": lambda have, want: have is not None and _compare(have, want) < 0,
    "lte": lambda have, want: have is not None and _compare(have, want) <= 0,
    "bw": lambda have, want: (
        have is not None and _compare(have, want[0]) >= 0 and _compare(have, want[1]) <= 0
    ),
    "is_timestamp": lambda have, want: time_meant(have) is not None,
    "timestamp_gta": lambda have, want: _after(have, float(want)),
    "timestamp_lta": lambda have, want: _until(have, float(want)),
}
#: Those that compare a time with now and so many seconds (observed). A time that is just reached
#: is over, so that `gt` and `lt` turn at the same second (inferred).
TIME_OPERATORS: Dict[str, Callable[[Optional[str], Any, float], bool]] = {
    "timestamp_gt": lambda have, want, now: _after(have, now + float(want)),
    "timestamp_lt": lambda have, want, now: _until(have, now + float(want)),
    "timestamp_bw": lambda have, want, now: (
        _after(have, now + float(want[0])) and _until(have, now + float(want[1]))
    ),
}
_WITHOUT_VALUE = {"exists", "not_exists", "!exists", "is_timestamp"}
_WITH_TWO = {"bw", "timestamp_bw"}


def time_meant(text: Optional[str]) -> Optional[float]:
    """The time that an attribute means, Unix seconds or ISO 8601; None if it means none."""
    if not text or len(text) > 60:
        return None
    number = _as_number(text)
    if number is not None:
        return number if abs(number) <= MAX_NUMBER else None
    return _iso_seconds(text)


def _after(have: Optional[str], moment: float) -> bool:
    when = time_meant(have)
    return when is not None and when > moment


def _until(have: Optional[str], moment: float) -> bool:
    when = time_meant(have)
    return when is not None and when <= moment


# ---- the grammar


class Kind(NamedTuple):
    """A kind of condition: how it is compiled, and what may stand beside it."""

    compile: Callable[[Json, str, Grammar, Json], Predicate]
    more: Tuple[str, ...] = ()


class Grammar(NamedTuple):
    """Which kinds of condition may stand somewhere, and whom they ask."""

    kinds: Mapping[str, Kind]
    member: Member
    #: Gather what the conditions depend on, and when they turn.
    needs: Set[Need]
    turns: List[Turns]
    #: What conditions about more than attributes and segments ask: see Segments.
    world: Any = None
    #: The person whom a subject is about.
    person: Callable[[Any], Any] = lambda subject: subject
    #: From when on what happens counts.
    begin: Callable[[Any], Begin] = lambda subject: (0.0, 0)
    #: Renders a value that is a template; None where values are taken as they are.
    render: Optional[Callable[[Any, str], str]] = None


class Condition(NamedTuple):
    """Compiled conditions, what they depend on, and when they turn by themselves."""

    test: Predicate
    needs: FrozenSet[Need]
    turns: Tuple[Turns, ...]

    def next_turn(self, subject: Any, now: float) -> Optional[float]:
        """When the answer may be another without anything happening; None if never."""
        times = [when for turn in self.turns for when in turn(subject) if when > now]
        return min(times) if times else None


def compile_filter(spec: Json, where: str, member: Member) -> Predicate:
    """Turn a filter of the App API into a predicate over a Subject; `where` names its field.

    Raises ApiError 400 with the path of the part that is wrong.
    """
    return _compiled(spec, where, Grammar(FILTERS, member, set(), []))


def compile_conditions(spec: Json, where: str, grammar: Grammar) -> Condition:
    """Compile what a segment or a journey asks. Raises ApiError 400 as `compile_filter` does."""
    grammar = grammar._replace(needs=set(), turns=[])
    test = _compiled(spec, where, grammar)
    return Condition(test, frozenset(grammar.needs), tuple(grammar.turns))


def _compiled(spec: Json, where: str, grammar: Grammar) -> Predicate:
    kinds = grammar.kinds
    named = [name for name in spec if name in kinds] if isinstance(spec, dict) else []
    if isinstance(spec, dict) and len(spec) == 1 and not named:
        (kind,) = spec
        raise invalid(f"{where} has '{kind}'; expected one of: {', '.join(kinds)}", where)
    if len(named) != 1 or (len(spec) > 1 and not kinds[named[0]].more):
        raise invalid(f"{where} must be an object with exactly one of: {', '.join(kinds)}", where)
    (kind,) = named
    for name, value in spec.items():
        if name != kind:
            _check_beside(name, value, where, kind, kinds[kind].more)
    test = kinds[kind].compile(spec[kind], f"{where}.{kind}", grammar, spec)
    return (lambda subject: not test(subject)) if spec.get("inverse") is True else test


def _check_beside(name: str, value: Json, where: str, kind: str, known: Sequence[str]) -> None:
    place = f"{where}.{name}"
    if name not in known:
        raise invalid(f"{place} does not go with {kind}; {suggestion(name, list(known))}", place)
    if name in _BESIDE and not _BESIDE[name][0](value):
        raise invalid(f"{place} must be {_BESIDE[name][1]}", place)


#: What may stand beside several kinds of condition.
_BESIDE: Dict[str, Tuple[Callable[[Json], bool], str]] = {
    "inverse": (lambda value: isinstance(value, bool), "true or false"),
    "times": (lambda value: type(value) is int and value > 0, "a whole number from 1 up"),
    "within": (
        lambda value: type(value) in (int, float) and 0 <= value <= MAX_NUMBER,
        "seconds from 0 up, where 0 means ever",
    ),
    "since": (lambda value: value == "journey", '"journey"'),
}


def _parts(body: Json, where: str, grammar: Grammar) -> List[Predicate]:
    if not isinstance(body, list) or not body:
        raise invalid(f"{where} must be a list of at least one filter", where)
    return [_compiled(part, f"{where}[{i}]", grammar) for i, part in enumerate(body)]


def _and_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    parts = _parts(body, where, grammar)
    return lambda subject: all(part(subject) for part in parts)


def _or_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    parts = _parts(body, where, grammar)
    return lambda subject: any(part(subject) for part in parts)


def _not_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    part = _compiled(body, where, grammar)
    return lambda subject: not part(subject)


def _segment_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    number = body.get("id") if isinstance(body, dict) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise invalid(f"{where}.id must be the segment's number", where)
    member = grammar.member
    if grammar.world is not None:
        grammar.needs.add(("segment", number))
    return lambda subject: member(subject, number)


# ---- fields and what they are compared with


class Judge(NamedTuple):
    """What a condition wants of a field."""

    field: str
    test: Callable[[Optional[str], Any], bool]
    #: What to compare with, or the templates of that.
    wanted: Any
    inverse: bool
    render: Optional[Callable[[Any, str], str]] = None
    #: How many seconds before or after the time in the field it turns.
    offsets: Tuple[float, ...] = ()

    def fits(self, subject: Any, texts: Iterable[Optional[str]]) -> bool:
        """Whether any of the texts is as wanted."""
        wanted = self.wanted
        if self.render is not None:
            wanted = self.render(subject, wanted)
        return any(self.test(text, wanted) for text in texts) is not self.inverse

    def turns(self, texts: Iterable[Optional[str]]) -> List[float]:
        """When it may turn by itself, Unix seconds."""
        moments = [time_meant(text) for text in texts]
        return [when - o for when in moments if when is not None for o in self.offsets]


def _judge(body: Json, where: str, grammar: Grammar) -> Judge:
    if not isinstance(body, dict) or not isinstance(body.get("field"), str):
        raise invalid(f"{where}.field must be the name of an attribute", where)
    operator = body.get("operator")
    test = _test_of(operator, grammar) if isinstance(operator, str) else None
    if test is None:
        known = [*OPERATORS, *(TIME_OPERATORS if grammar.world is not None else ())]
        raise invalid(f"{where}.operator must be one of: {', '.join(known)}", where)
    names = () if operator in _WITHOUT_VALUE else ("value", "value2")
    values = [body.get(name) for name in names[: 2 if operator in _WITH_TWO else 1]]
    for name, value in zip(names, values):
        if value is None or isinstance(value, (dict, list)):
            raise invalid(f"{where}.{name} is required for '{operator}'", where)
    texts = [as_text(value) for value in values]
    offsets = _offsets(str(operator), texts, where)
    wanted = tuple(texts) if operator in _WITH_TWO else texts[0] if texts else ""
    liquid = grammar.render if any("{{" in text for text in texts) else None
    if liquid is not None and any("{%" in text for text in texts):
        raise invalid(f"{where}.value can have {{{{ }}}} but no tags", where)
    if liquid is not None and operator in _WITH_TWO:
        raise invalid(f"{where}: '{operator}' takes no templates", where)
    return Judge(body["field"], test, wanted, body.get("inverse") is True, liquid, offsets)


def _test_of(operator: str, grammar: Grammar) -> Optional[Callable[[Optional[str], Any], bool]]:
    timely, world = TIME_OPERATORS.get(operator), grammar.world
    if timely is None or world is None:
        return OPERATORS.get(operator)
    return lambda have, want: cast(Any, timely)(have, want, world.clock.now())


def _offsets(operator: str, texts: List[str], where: str) -> Tuple[float, ...]:
    """The seconds of a time operator. Raises ApiError 400 if they are no numbers."""
    if not operator.startswith("timestamp_"):
        return ()
    numbers = [_as_number(text) for text in texts]
    if None in numbers:
        raise invalid(f"{where}.value of '{operator}' must be a number of seconds", where)
    return tuple(cast(List[float], numbers)) if operator in TIME_OPERATORS else ()


def values_at(value: Json, path: str) -> List[Json]:
    """What stands at a path: `a.b`, `list[]` for any item, `list[0]` for the first (docs)."""
    if isinstance(value, dict) and path in value:
        return [value[path]]
    found = [value]
    for part in re.findall(r"[^.\[\]]+|\[\d{0,9}\]", path):
        if part == "[]":
            found = [item for row in found if isinstance(row, list) for item in row]
        elif part[0] == "[":
            index = int(part[1:-1])
            found = [row[index] for row in found if isinstance(row, list) and index < len(row)]
        else:
            found = [row[part] for row in found if isinstance(row, dict) and part in row]
    return found


def _texts_at(value: Json, path: str) -> List[Optional[str]]:
    texts = [as_text(found) for found in values_at(value, path) if found is not None]
    return [*texts] or [None]


def _is_deep(name: str) -> bool:
    return "." in name or "[" in name


def _attribute_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    judge, person = _judge(body, where, grammar), grammar.person
    name, test, wanted, inverse = judge[:4]
    if grammar.world is not None:
        grammar.needs.add(("attribute", re.split(r"[.\[]", name)[0]))
    if judge.offsets:
        grammar.turns.append(lambda subject: judge.turns([subject.text(name)]))
    if judge.render is not None:
        return lambda subject: judge.fits(subject, [subject.text(name)])
    if _is_deep(name) and grammar.world is not None:
        return lambda subject: judge.fits(
            subject, _texts_at(getattr(person(subject), "attributes", None), name)
        )
    return lambda subject: test(subject.text(name), wanted) is not inverse


def _data_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    """A bare `{"field", "operator", "value"}` about data: a pair of a subject and a document."""
    judge = _judge(spec, where.rpartition(".")[0], grammar)
    return lambda pair: judge.fits(pair[0], _texts_at(pair[1], judge.field))


def compile_data(spec: Json, where: str, grammar: Grammar) -> Predicate:
    """Conditions on the data of an event, as a predicate over pairs of a subject and the data."""
    if spec == {}:
        return lambda pair: True
    return _compiled(spec, where, grammar._replace(kinds=_DATA))


def _about(read: Callable[[Any, Any, Json], Iterable[Json]], *needs: Need) -> Kind:
    """A kind of condition on documents that a grammar's world and a subject lead to."""

    def compile(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
        judge = _judge(body, where, grammar)
        grammar.needs.update(needs)

        def texts(subject: Any) -> List[Optional[str]]:
            rows = read(grammar, subject, body)
            return [text for row in rows for text in _texts_at(row, judge.field)]

        if judge.offsets:
            grammar.turns.append(lambda subject: judge.turns(texts(subject)))
        return lambda subject: judge.fits(subject, texts(subject) or [None])

    return Kind(compile, ("inverse",))


def _devices_of(grammar: Grammar, subject: Any, body: Json) -> Iterable[Json]:
    person = grammar.person(subject)
    return [device.record() for device in person.has.devices.values()] if person else ()


def _relationships_of(grammar: Grammar, subject: Any, body: Json) -> Dict[Any, Json]:
    """The relationships meant: those of the object that began a journey, else of the type."""
    person, key = grammar.person(subject), getattr(subject, "object_key", None)
    related: Dict[Any, Json] = person.has.relationships if person else {}
    if key is not None:
        return {key: related.get(key, {})}
    type = as_text(body.get("type_id", ""))
    return {key: row for key, row in related.items() if type in ("", key[0])}


def _objects_of(grammar: Grammar, subject: Any, body: Json) -> Iterable[Json]:
    keys = _relationships_of(grammar, subject, body)
    rows = grammar.world.objects.rows
    things = [rows[key] for key in keys if key in rows]
    return [{**thing.attributes, "object_id": thing.key[1]} for thing in things]


# ---- what happened


def _event_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    """`{"event": {"name", "type", "filters"}, "times", "within", "inverse"}` (observed)."""
    if not isinstance(body, dict) or not isinstance(body.get("name"), str) or not body["name"]:
        raise invalid(f"{where}.name must be the name of an event", where)
    name, type = body["name"], body.get("type", "event")
    if type not in _EVENT_TYPES:
        raise invalid(f"{where}.type must be one of: {', '.join(_EVENT_TYPES)}", where)
    fits = compile_data(body.get("filters") or {}, f"{where}.filters", grammar)
    times, within = spec.get("times", 1), spec.get("within", 0)
    journey = spec.get("since") == "journey"
    begin = (lambda subject: (subject.started, subject.born)) if journey else grammar.begin
    clock = grammar.world.clock
    if type == "attribute_change":
        grammar.world.watch(name)
    grammar.needs.add(("attribute" if type == "attribute_change" else "event", name))

    def moments(subject: Any) -> List[float]:
        rows = _EVENT_TYPES[type](grammar, subject, name, type, begin(subject))
        oldest = clock.now() - within if within else -math.inf
        return [when for when, data in rows if when > oldest and fits((subject, data))]

    if within:
        grammar.turns.append(lambda subject: [when + within for when in moments(subject)])
    if spec.get("inverse") is not True:
        return lambda subject: len(moments(subject)) >= times
    return _not_happened(grammar, name, type, within, lambda s: len(moments(s)) >= times)


def _not_happened(
    grammar: Grammar, name: str, type: str, within: float, happened: Predicate
) -> Predicate:
    """What `inverse` turns round: nobody has failed to do in N days what they had no N days for.

    Nor has an attribute that nobody ever had "not changed" (observed).
    """
    if type == "attribute_change":
        known = _ever_known(grammar, name)
        return lambda subject: happened(subject) or not known(subject)
    if not within:
        return happened
    clock, person = grammar.world.clock, grammar.person
    grammar.turns.append(lambda subject: [_known_since(person(subject)) + within])
    return lambda subject: happened(subject) or clock.now() < _known_since(person(subject)) + within


def _known_since(person: Any) -> float:
    """When a person was added, or had the first event, backdated ones included (docs)."""
    if person is None:
        return math.inf
    return float(min([person.created_at, *(event.when for event in person.has.events)]))


def _ever_known(grammar: Grammar, name: str) -> Predicate:
    person, changes = grammar.person, grammar.world.changes
    return lambda subject: (
        any(key[1] == name for key in changes)
        or (subject.text(name) is not None and person(subject) is not None)
    )


def _events_of(
    grammar: Grammar, subject: Any, name: str, type: str, begin: Begin
) -> Iterable[Tuple[float, Json]]:
    person = grammar.person(subject)
    for event in person.has.events if person else ():
        if event.name == name and event.type == type and event.serial >= begin[1]:
            yield event.when, event.data


def _changes_of(
    grammar: Grammar, subject: Any, name: str, type: str, begin: Begin
) -> Iterable[Tuple[float, Json]]:
    person = grammar.person(subject)
    for when, old, new in grammar.world.changes.get((person.serial, name), ()) if person else ():
        if when >= begin[0]:
            yield when, {"from": old, "to": new}


_EVENT_TYPES: Dict[str, Callable[..., Iterable[Tuple[float, Json]]]] = {
    **dict.fromkeys(("event", "page", "screen"), _events_of),
    "attribute_change": _changes_of,
}

#: What a message condition may ask for.
MESSAGE_ACTIVITY = (
    "sent", "delivered", "opened", "clicked", "human_opened", "human_clicked", "converted",
    "bounced", "dropped", "failed", "undeliverable", "drafted", "attempted", "unsubscribed",
    "spammed", "replied",
)  # fmt: skip
_MESSAGE_PARENTS = ("action_id", "campaign_id", "newsletter_id", "broadcast_id")


def _message_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    """`{"message": {"action_id", "metric"}}`: of this journey, or of anything named."""
    metric = body.get("metric") if isinstance(body, dict) else None
    if metric not in MESSAGE_ACTIVITY:
        text = f"{where}.metric must be one of: {', '.join(MESSAGE_ACTIVITY)}"
        raise invalid(text, where)
    for name in body:
        if name not in (*_MESSAGE_PARENTS, "metric"):
            text = f"{where}.{name} is unknown; {suggestion(name, [*_MESSAGE_PARENTS, 'metric'])}"
            raise invalid(text, where)
    parents = {name: body[name] for name in _MESSAGE_PARENTS if name in body}
    person, clock, within = grammar.person, grammar.world.clock, spec.get("within", 0)
    grammar.needs.add(("message", metric))
    own = set(parents) == {"action_id"}

    def moments(subject: Any) -> List[float]:
        about = person(subject)
        return [
            delivery.metrics[metric]
            for delivery in (about.has.deliveries if about else ())
            if metric in delivery.metrics
            and all(delivery.parents.get(k) == v for k, v in parents.items())
            and (about is subject or not own or delivery.journey is subject)
            and not (within and delivery.metrics[metric] <= clock.now() - within)
        ]

    if within:
        grammar.turns.append(lambda subject: [when + within for when in moments(subject)])
    return lambda subject: bool(moments(subject))


# ---- what only a journey can be asked


def _event_time_condition(body: Json, where: str, grammar: Grammar, spec: Json) -> Predicate:
    """Whether the time is reached that the triggering event names (docs: "event time")."""
    if not isinstance(body, dict) or not isinstance(body.get("field"), str):
        raise invalid(f"{where}.field must name a timestamp in the event's data", where)
    field, clock = body["field"], grammar.world.clock

    def moments(subject: Any) -> List[float]:
        found = map(time_meant, _texts_at(subject.data, field))
        return [when for when in found if when is not None]

    grammar.turns.append(moments)
    return lambda subject: any(when <= clock.now() for when in moments(subject))


_NEGATABLE = ("inverse",)
_CONNECTIVES = {
    "and": Kind(_and_condition),
    "or": Kind(_or_condition),
    "not": Kind(_not_condition),
}
#: What the App API's filters consist of (reference).
FILTERS: Dict[str, Kind] = {
    **_CONNECTIVES,
    "segment": Kind(_segment_condition),
    "attribute": Kind(_attribute_condition),
    "object_attribute": Kind(_attribute_condition),
}
#: What can be asked of the data of an event.
_DATA = {
    **_CONNECTIVES,
    "field": Kind(_data_condition, ("operator", "value", "value2", "inverse")),
}
#: What segments may ask of a person (reference, observed).
PERSON_CONDITIONS: Dict[str, Kind] = {
    **_CONNECTIVES,
    "segment": Kind(_segment_condition, _NEGATABLE),
    "attribute": Kind(_attribute_condition, _NEGATABLE),
    "event": Kind(_event_condition, ("times", "within", "inverse")),
    "message": Kind(_message_condition, ("within", "inverse")),
    "device_attribute": _about(_devices_of, ("device", "")),
    "object_attribute": _about(_objects_of, ("object", "")),
    "relationship_attribute": _about(
        lambda grammar, subject, body: _relationships_of(grammar, subject, body).values(),
        ("object", ""),
    ),
}
#: What a journey may ask of itself, too.
JOURNEY_CONDITIONS: Dict[str, Kind] = {
    **PERSON_CONDITIONS,
    "event": Kind(_event_condition, ("times", "within", "inverse", "since")),
    "event_attribute": _about(lambda grammar, subject, body: [subject.data]),
    "journey_attribute": _about(lambda grammar, subject, body: [subject.attributes]),
    "event_time": Kind(_event_time_condition, _NEGATABLE),
}


# ======================================================================================
# ==== §7 Records
# ======================================================================================


# ---- what the control lists show: the fields that tests name, and what they are


class PersonRecord(TypedDict):
    """A row of `/__parlel/customers`. Times are Unix seconds."""

    id: Optional[str]
    cio_id: str
    identifiers: Dict[str, Optional[str]]
    attributes: Attributes
    unsubscribed: bool
    created_at: int
    updated_at: int


class EventRecord(TypedDict):
    """A row of `/__parlel/events`. Times are Unix seconds."""

    id: str
    kind: str
    customer_id: Optional[str]
    cio_id: Optional[str]
    anonymous_id: Optional[str]
    name: str
    type: str
    data: Attributes
    timestamp: int
    received_at: int


class DeliveryRecord(TypedDict):
    """A row of `/__parlel/deliveries`. Times are Unix seconds."""

    delivery_id: str
    channel: str
    message: Attributes
    customer_id: Optional[str]
    cio_id: Optional[str]
    recipient: str
    state: str
    failure_message: Optional[str]
    rendered: Attributes
    parents: Dict[str, int]
    metrics: Dict[str, int]
    history: List[Attributes]
    devices: List[str]
    send_at: Optional[int]
    received_at: int


class DeviceRecord(TypedDict):
    """A row of `/__parlel/devices`. Times are Unix seconds."""

    id: str
    platform: str
    last_used: int
    attributes: Attributes
    customer_id: str


class ObjectRecord(TypedDict):
    """A row of `/__parlel/objects`. Times are Unix seconds."""

    object_type_id: str
    object_id: str
    cio_object_id: str
    attributes: Attributes
    relationships: List[Attributes]
    created_at: int
    updated_at: int


class SegmentRecord(TypedDict):
    """A row of `/__parlel/segments`. Times are Unix seconds."""

    id: int
    deduplicate_id: str
    name: str
    description: str
    state: str
    progress: Optional[int]
    type: str
    tags: Optional[List[str]]
    created_at: int
    updated_at: int
    customer_ids: List[str]


class FormRecord(TypedDict):
    """A row of `/__parlel/forms`."""

    id: str
    submissions: List[Attributes]


class BroadcastRecord(TypedDict):
    """A row of `/__parlel/broadcasts`: one trigger. Times are Unix seconds."""

    id: int
    campaign_id: int
    payload: Attributes
    errors: List[str]
    processed_at: Optional[int]
    received_at: int


class MergeRecord(TypedDict):
    """A row of `/__parlel/merges`. Times are Unix seconds."""

    primary: Dict[str, str]
    secondary: Dict[str, str]
    applied: bool
    received_at: int


class BatchRecord(TypedDict):
    """A row of `/__parlel/batches`. Times are Unix seconds."""

    id: int
    source: str
    operations: List[Attributes]
    received_at: int


class ReportRecord(TypedDict):
    """A row of `/__parlel/webhooks`. Times are Unix seconds."""

    event_id: str
    object_type: str
    metric: str
    timestamp: int
    data: Attributes
    attempts: List[Attributes]


class RequestRecord(TypedDict):
    """A row of `/__parlel/requests`. `at` is Unix seconds with a fraction."""

    id: int
    at: float
    workspace: Optional[str]
    method: str
    path: str
    decoded_path: str
    query: Dict[str, str]
    headers: Dict[str, str]
    body: Any
    operation: Optional[str]
    api: Optional[str]
    person: Optional[str]
    events: List[str]
    status: int
    duration_ms: float
    response: Any
    reason: Optional[str]
    fault: Optional[int]


class JourneyRecord(TypedDict):
    """A row of `/__parlel/journeys`. Times are Unix seconds; `steps` tell what each tile did."""

    id: str
    campaign_id: int
    customer_id: Optional[str]
    identifiers: Dict[str, Optional[str]]
    state: str
    match_time: int
    activated_at: Optional[int]
    trigger_event_id: Optional[str]
    trigger: Attributes
    next_action_id: Optional[int]
    next_wake_up: Optional[int]
    waiting_for: Optional[str]
    exited_at: Optional[int]
    exit_reason: Optional[str]
    converted_at: Optional[int]
    attributes: Attributes
    steps: List[Attributes]


class DroppedRecord(TypedDict):
    """A row of `/__parlel/dropped`. Times are Unix seconds."""

    operation: str
    identifier: str
    customer_id: str
    reason: str
    received_at: int


# ---- people, and what happens to them


class Person:
    """One person. `attributes` and `timestamps` are replaced as a whole, never mutated.

    `email` stands in `attributes`, too; `id`, `phone` and cio_id don't. What few people have
    (events, devices, …) is in `has`, which is shared and empty until `own()` is asked for.
    Times are Unix seconds.
    """

    __slots__ = (
        "attributes", "created_at", "email", "has", "id", "phone", "serial",
        "timestamps", "updated_at",
    )  # fmt: skip

    serial: int
    id: str
    email: str
    phone: str
    attributes: Attributes
    timestamps: Dict[str, int]
    created_at: int
    updated_at: int
    has: Belongings

    def __init__(self, serial: int, now: int) -> None:
        self.serial = serial
        self.id = self.email = self.phone = ""
        self.attributes, self.timestamps = {}, {}
        self.created_at = self.updated_at = now
        self.has = _NOTHING

    @property
    def cio_id(self) -> str:
        """The immutable identifier that Customer.io gives."""
        return cio_id_of(self.serial)

    @property
    def name(self) -> str:
        """What to call this person in records: the id, else the email, else the cio_id."""
        return self.id or self.email or self.cio_id

    def own(self) -> Belongings:
        """The belongings of this very person, made on first use."""
        if self.has is _NOTHING:
            self.has = Belongings()
        return self.has

    def all_attributes(self) -> Attributes:
        """The attributes with the identifiers among them, as the App API shows them."""
        known = {**self.attributes, "cio_id": self.cio_id}
        if self.id:
            known["id"] = self.id
        if self.phone:
            known["phone"] = self.phone
        return known

    def text(self, name: str) -> Optional[str]:
        """One attribute or identifier as text; None if it is not set."""
        value = self.attributes.get(name)
        if value is None and name in ("id", "phone", "cio_id"):
            return getattr(self, name) or None
        return value if value is None or type(value) is str else as_text(value)

    def identifiers(self) -> Json:
        """`{id, email, cio_id}`; what is not set is null (reference)."""
        return {"id": self.id or None, "email": self.email or None, "cio_id": self.cio_id}

    def unsubscribed(self) -> bool:
        """Whether the person takes no messages: any case of true, 1 or "1" (reference)."""
        return is_yes(self.attributes.get("unsubscribed"))

    def shown_attributes(self) -> Attributes:
        """The attributes with the phone, which may identify, among them."""
        return {**self.attributes, "phone": self.phone} if self.phone else self.attributes

    def record(self) -> PersonRecord:
        """The person as `/__parlel/customers` shows it."""
        return {
            "id": self.id or None,
            "cio_id": self.cio_id,
            "identifiers": self.identifiers(),
            "attributes": self.shown_attributes(),
            "unsubscribed": self.unsubscribed(),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


#: Attributes that nobody sets and the App API shows all the same (reference).
COMPUTED = ("_cio_subscription_preferences_computed", "_last_emailed")


def is_unsubscribed(attributes: Attributes) -> bool:
    """Whether attributes say so: any case of true, 1 or "1" (reference)."""
    return is_yes(attributes.get("unsubscribed"))


class Belongings:
    """What a person gathers beside attributes."""

    __slots__ = (
        "anonymous_ids", "deliveries", "devices", "events", "journeys", "relationships",
        "segments",
    )  # fmt: skip

    events: List[Event]
    devices: Dict[str, Device]
    deliveries: List[Delivery]
    anonymous_ids: List[str]
    segments: Set[int]
    relationships: Dict[ObjectKey, Attributes]
    journeys: List[Journey]

    def __init__(self) -> None:
        self.events, self.deliveries, self.anonymous_ids, self.journeys = [], [], [], []
        self.devices, self.segments, self.relationships = {}, set(), {}


_NOTHING = Belongings()

#: The attribute of a device that says what became of the last push to it, by the metrics that
#: change it; only the service sets it (reference).
LAST_STATUS = "_last_status"
_DEVICE_STATUS = {"sent": "sent", "bounced": "bounced", "dropped": "suppressed"}


class Device:
    """A push token of a person. `last_used` is in Unix seconds."""

    __slots__ = ("attributes", "last_used", "person", "platform", "token")

    token: str
    platform: str
    last_used: int
    attributes: Attributes
    person: Person

    def __init__(
        self, token: str, platform: str, last_used: int, attributes: Attributes, person: Person
    ) -> None:
        self.token, self.platform, self.last_used = token, platform, last_used
        self.attributes, self.person = attributes, person

    def record(self) -> DeviceRecord:
        """The device as `/__parlel/devices` shows it."""
        return {
            "id": self.token,
            "platform": self.platform,
            "last_used": self.last_used,
            "attributes": self.attributes,
            "customer_id": self.person.name,
        }


class Event:
    """Something that happened, to a person or anonymously. Times are Unix seconds.

    `customer_id` is who it was reported for; `person` is None while nobody has it.
    """

    __slots__ = (
        "anonymous_id", "customer_id", "data", "given_id", "kind", "name", "person",
        "received_at", "serial", "timestamp", "type",
    )  # fmt: skip

    kind: str
    name: str
    data: Attributes
    type: str
    timestamp: Optional[int]
    given_id: str
    serial: int
    received_at: Instant
    customer_id: Optional[str]
    anonymous_id: Optional[str]
    person: Optional[Person]

    def __init__(
        self, kind: str, name: str, data: Json, type: str, timestamp: Optional[int], given_id: str
    ) -> None:
        self.kind, self.name, self.data, self.type = kind, name, data, type
        self.timestamp, self.given_id = timestamp, given_id
        self.serial, self.received_at = 0, 0.0
        self.customer_id = self.anonymous_id = self.person = None

    @property
    def when(self) -> float:
        """When it happened, as far as anybody says."""
        return self.received_at if self.timestamp is None else self.timestamp

    @property
    def id(self) -> str:
        """The id that it came with, else one of Customer.io's."""
        return self.given_id or ulid(self.received_at, self.serial)

    def record(self) -> EventRecord:
        """The event as `/__parlel/events` shows it."""
        received = int(self.received_at)
        return {
            "id": self.id,
            "kind": self.kind,
            "customer_id": self.customer_id,
            "cio_id": self.person.cio_id if self.person else None,
            "anonymous_id": self.anonymous_id,
            "name": self.name,
            "type": self.type,
            "data": self.data,
            "timestamp": received if self.timestamp is None else self.timestamp,
            "received_at": received,
        }


#: An object's type number and your id for it.
ObjectKey = Tuple[str, str]


class Thing:
    """An object: anything that isn't a person, such as a company. Times are Unix seconds."""

    __slots__ = (
        "attributes", "cio_object_id", "created_at", "key", "people", "timestamps",
        "updated_at",
    )  # fmt: skip

    key: ObjectKey
    cio_object_id: str
    attributes: Attributes
    timestamps: Dict[str, int]
    created_at: int
    updated_at: int
    #: Who is related to it, by serial number.
    people: Dict[int, Person]

    def __init__(self, key: ObjectKey, cio_object_id: str, now: int) -> None:
        self.key, self.cio_object_id = key, cio_object_id
        self.attributes, self.timestamps, self.people = {}, {}, {}
        self.created_at = self.updated_at = now

    def text(self, name: str) -> Optional[str]:
        """One attribute or identifier as text; None if it is not set."""
        named = {"object_id": self.key[1], "cio_object_id": self.cio_object_id}
        value = named.get(name, self.attributes.get(name))
        return None if value is None else as_text(value)

    def record(self) -> ObjectRecord:
        """The object as `/__parlel/objects` shows it."""
        related = [
            {"customer_id": person.name, "attributes": person.has.relationships[self.key]}
            for person in self.people.values()
        ]
        return {
            "object_type_id": self.key[0],
            "object_id": self.key[1],
            "cio_object_id": self.cio_object_id,
            "attributes": self.attributes,
            "relationships": related,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


# ---- messages

#: What the App API calls a channel, where that isn't its name in a send (reference).
MESSAGE_TYPES = {"sms": "twilio", "inbox_message": "inbox"}
#: What a client may report about a delivery, and by which channel (reference).
METRICS = (
    "opened", "clicked", "converted", "delivered", "bounced", "deferred", "dropped", "spammed",
)  # fmt: skip
PUSH_METRICS = ("opened", "converted", "delivered")
#: After what the email provider suppresses an address, and on which list (docs: ESP suppression).
SUPPRESSING = {"bounced": "bounces", "spammed": "spam_reports"}
CHANNEL_METRICS = {
    "in_app": ("clicked", "converted", "opened"),
    "push": ("clicked", *PUSH_METRICS),
    "sms": ("bounced", "clicked", "delivered", "opened"),
}


class Delivery:
    """One message to one person. Times are Unix seconds.

    `metrics` holds when something happened first, only for what has happened (observed).
    """

    __slots__ = (
        "delivery_id", "channel", "message", "person", "customer_id", "recipient",
        "created", "send_at", "metrics", "history", "parents", "journey", "rendered", "seen",
        "data", "devices", "base_url", "told",
    )  # fmt: skip

    delivery_id: str
    channel: str
    message: Annotated[Attributes, MESSAGE]
    person: Optional[Person]
    customer_id: Optional[str]
    recipient: str
    created: Moment
    send_at: Optional[int]
    metrics: Dict[str, int]
    history: List[Annotated[Attributes, HAPPENED]]
    #: What it is part of: {"campaign_id": 1, "action_id": 2}, or newsletter, broadcast, …
    parents: Dict[str, int]
    #: The journey that it is from.
    journey: Optional[Journey]
    #: What was rendered: subject, body, links, …; empty until it is sent.
    rendered: Annotated[Attributes, RENDERED]
    #: The same with all that follows from it, once somebody has asked (`as_seen`).
    seen: Optional[Attributes]
    #: The `trigger` of its templates.
    data: Attributes
    #: Where a push went: platforms by token; empty until it is sent.
    devices: Dict[str, str]
    #: Where the links inside it lead.
    base_url: str
    #: What the real service told of one that was seeded, and nobody can know here.
    told: Attributes

    def __init__(self, delivery_id: str, channel: str, message: Json, created: int) -> None:
        self.delivery_id, self.channel, self.message = delivery_id, channel, message
        self.person = self.customer_id = self.send_at = self.seen = self.journey = None
        # The `to` of a push says which devices, not who.
        to = "" if channel == "push" else message.get("to") or ""
        self.recipient, self.base_url = as_text(to), ""
        self.created, self.metrics, self.history = created, _created_at(created), _NO_HISTORY
        self.parents = self.rendered = self.data = self.devices = _NONE
        self.told = _NONE

    @property
    def origin(self) -> Dict[str, Optional[str]]:
        """The journey that it is from, and the event that triggered that; empty for others."""
        journey = self.journey
        if journey is None:
            return {}
        return {"journey_id": journey.id, "trigger_event_id": journey.event_id}

    @property
    def state(self) -> str:
        """The last thing that happened to it."""
        return self.history[-1]["metric"] if self.history else "created"

    @property
    def is_draft(self) -> bool:
        """Whether it waits for somebody to send it in the web app."""
        return "drafted" in self.metrics and "sent" not in self.metrics

    @property
    def template_id(self) -> int:
        """The content that it was made of; 0 if there is none."""
        return self.parents.get("content_id") or self.parents.get("action_id") or 0

    @property
    def failure(self) -> str:
        """Why it did not reach anybody; "" if it did, or may still."""
        reasons = [row["reason"] for row in self.history if row.get("reason")]
        return str(reasons[0]) if reasons else ""

    def tracked_links(self) -> List[Json]:
        """The links inside that lead through this server."""
        return [row for row in self.rendered.get("links", ()) if row["tracked"]]

    def addressed(self) -> Dict[str, str]:
        """The devices of a push, platforms by token: where it went, or else would go now."""
        if self.channel != "push" or self.person is None or "sent" in self.metrics:
            return self.devices
        to, devices = self.rendered.get("to"), list(self.person.has.devices.values())
        if to == "last_used":
            devices = sorted(devices, key=operator.attrgetter("last_used"))[-1:]
        elif self.message.get("to") and to != "all":
            devices = [device for device in devices if device.token == to]
        return {device.token: device.platform for device in devices}


_NONE: Dict[str, Any] = {}
_NO_HISTORY: List[Attributes] = []


@functools.lru_cache(maxsize=64)
def _created_at(seconds: int) -> Dict[str, int]:
    return {"created": seconds}


# ---- journeys


class Step(NamedTuple):
    """What a journey did at one of its tiles. `at` is in Unix seconds."""

    action_id: int
    type: str
    at: float
    outcome: str
    reason: str = ""
    path: Optional[int] = None
    delivery: Optional[Delivery] = None

    def record(self) -> Json:
        """The step as `/__parlel/journeys` shows it; a message tells what became of it."""
        row: Json = {"action_id": self.action_id, "type": self.type, "at": int(self.at)}
        delivery, reason = self.delivery, self.reason
        row["outcome"] = self.outcome
        if delivery is not None:
            row["delivery_id"] = delivery.delivery_id
            happened = [name for name in _MESSAGE_OUTCOMES if name in delivery.metrics]
            row["outcome"] = _MESSAGE_OUTCOMES[happened[0]] if happened else self.outcome
            reason = reason or delivery.failure
        more = {"reason": reason or None, "path": self.path}
        return {**row, **{name: value for name, value in more.items() if value is not None}}


#: What the step of a message is called after what happened to it, the most telling first.
_MESSAGE_OUTCOMES = {
    "sent": "sent", "drafted": "drafted", "failed": "failed", "undeliverable": "undeliverable",
    "dropped": "undeliverable", "attempted": "attempted",
}  # fmt: skip
#: Where a journey can stand, and what its steps can have come to.
JOURNEY_STATES = ("active", "finished", "exited_early", "never_activated", "not_entered")
STEP_OUTCOMES = (
    *dict.fromkeys(_MESSAGE_OUTCOMES.values()), "created", "skipped", "waiting", "waited",
    "matched", "timed_out", "branched", "updated", "exited",
)  # fmt: skip


class Journey:
    """One way of one person through a campaign, or a refusal to begin one (`not_entered`).

    Times are Unix seconds. `attributes` and `data` are replaced as a whole, never mutated.
    """

    __slots__ = (
        "activated", "attributes", "born", "campaign_id", "converted", "customer_id", "data",
        "depth", "ended", "event", "goal_seen", "heard", "object_key", "person", "position",
        "reason", "serial", "started", "state", "steps", "waiting_for", "wake",
    )  # fmt: skip

    serial: int
    campaign_id: int
    #: None for data without a person, and once the person is gone.
    person: Optional[Person]
    customer_id: Optional[str]
    started: float
    state: str
    #: The tile that it stands before or waits in; None at the end.
    position: Optional[int]
    waiting_for: str
    #: When it goes on by itself.
    wake: Optional[float]
    steps: List[Step]
    #: Why it ended before its end, or never began.
    reason: str
    activated: Optional[float]
    converted: Optional[float]
    ended: Optional[float]
    event: Optional[Event]
    #: What triggered it: the data of an event, the body of a webhook, …
    data: Json
    #: The `journey` of its templates.
    attributes: Json
    object_key: Optional[ObjectKey]
    #: How many journeys set off each other in one instant before this one.
    depth: int
    #: How many events there were when it began, and when it came to where it waits.
    born: int
    heard: int
    #: When the goal was last seen reached; 0 while it isn't.
    goal_seen: float

    def __init__(
        self, campaign_id: int, person: Optional[Person], data: Json, event: Optional[Event]
    ) -> None:
        self.campaign_id, self.person, self.data, self.event = campaign_id, person, data, event
        self.customer_id = None if person is None else person.name
        self.serial = self.depth = self.born = self.heard = 0
        self.started = self.goal_seen = 0.0
        self.state, self.reason, self.waiting_for = "active", "", ""
        self.position = self.wake = self.activated = self.converted = self.ended = None
        self.object_key, self.steps, self.attributes = None, [], {}

    @property
    def id(self) -> str:
        """What reports and templates call it."""
        return ulid(self.started, self.serial + (1 << 40))

    @property
    def event_id(self) -> Optional[str]:
        """The id of the event that triggered it; None if no event did."""
        return None if self.event is None else self.event.id

    @property
    def waits(self) -> bool:
        """Whether the last step is one that it waits in."""
        return bool(self.steps) and self.steps[-1].outcome == "waiting"

    @property
    def arrived(self) -> float:
        """When it came to where it waits."""
        return self.steps[-1].at if self.steps else self.started

    @property
    def since(self) -> Tuple[float, int]:
        """From when on it waits: the time, and how many events there had been."""
        return self.arrived, self.heard

    def end(self, now: float, state: str, reason: str, type: str) -> None:
        """Let it end, before or in a tile of some type unless it is `finished`."""
        if state != "finished" and self.position is not None:
            steps, at = (self.steps[:-1], self.arrived) if self.waits else (self.steps, now)
            self.steps = [*steps, Step(self.position, type, at, "exited", reason)]
        self.state, self.reason, self.ended = state, reason, now
        self.position = self.wake = None
        self.waiting_for = ""

    def text(self, name: str) -> Optional[str]:
        """One attribute of its person as text; None if it is not set."""
        return None if self.person is None else self.person.text(name)

    def record(self) -> JourneyRecord:
        """The journey as `/__parlel/journeys` shows it."""
        person, times = self.person, ("activated", "ended", "converted")
        activated, ended, converted = (_whole_time(getattr(self, name)) for name in times)
        nobody = {"id": self.customer_id, "email": None, "cio_id": None}
        return {
            "id": self.id,
            "campaign_id": self.campaign_id,
            "customer_id": self.customer_id,
            "identifiers": nobody if person is None else person.identifiers(),
            "state": self.state,
            "match_time": int(self.started),
            "activated_at": activated,
            "trigger_event_id": self.event_id,
            "trigger": self.data,
            "next_action_id": self.position,
            "next_wake_up": _whole_time(self.wake) if self.waiting_for else None,
            "waiting_for": self.waiting_for or None,
            "exited_at": ended,
            "exit_reason": self.reason or None,
            "converted_at": converted,
            "attributes": self.attributes,
            "steps": [step.record() for step in self.steps],
        }


def _whole_time(when: Optional[float]) -> Optional[int]:
    return None if when is None else int(when)


class Report:
    """One reporting webhook and the attempts to deliver it. `timestamp` is Unix seconds.

    `content` joins `data` for endpoints that want it.
    """

    __slots__ = (
        "attempts", "content", "data", "event_id", "metric", "object_type", "timestamp",
    )  # fmt: skip

    event_id: str
    object_type: str
    metric: str
    timestamp: int
    data: Attributes
    content: Attributes
    attempts: List[Annotated[Attributes, ATTEMPT]]

    def __init__(
        self, event_id: str, object_type: str, metric: str, timestamp: int, data: Json
    ) -> None:
        self.event_id, self.object_type, self.metric = event_id, object_type, metric
        self.timestamp, self.data = timestamp, data
        self.content, self.attempts = {}, []

    def head(self) -> Json:
        """The keys that every report has."""
        names = ("event_id", "object_type", "metric", "timestamp")
        return {name: getattr(self, name) for name in names}

    def record(self) -> Json:
        """The report as `/__parlel/webhooks` shows it."""
        return {**self.head(), "data": self.data, "attempts": self.attempts}


class Note(NamedTuple):
    """That something became of a message: what a Report of it is made of, once one is wanted."""

    number: int
    at: float
    delivery: Delivery
    metric: str
    #: Unix seconds, and the row of the delivery's history.
    when: int
    fact: Attributes
    #: Who it is about, and the id and email of that time.
    person: Optional[Person]
    id: str
    email: str


def device_named_by(fact: Json) -> str:
    """The token of the device that a row of a push's history is about; "" if it names none."""
    return as_text(fact.get("device_id") or fact.get("recipient") or "")


def response_named_by(fact: Json) -> Json:
    """The `tracked_response` of a click: the name of the action that was chosen (reference)."""
    metadata = fact.get("metadata")
    name = metadata.get("action_name") if isinstance(metadata, dict) else fact.get("actionName")
    return {"tracked_response": as_text(name)} if name else {}


@dataclass
class Export:
    """A finished export: its rows as CSV, and what the App API tells about it."""

    number: int
    type: str
    total: int
    csv: bytes
    created_at: int
    downloads: int = 0
    #: What the real service told of one that was seeded.
    told: Mapping[str, Any] = field(default_factory=dict)

    def record(self, pending: bool = False) -> Json:
        """The export object; `pending` as in the answer to the call that ordered it."""
        return {
            "id": self.number,
            "deduplicate_id": f"{self.number}:{self.created_at}",
            "user_id": 0,
            "user_email": "",
            "type": self.type,
            "status": "pending" if pending else "done",
            "failed": False,
            "description": f"{self.type} export {self.number}",
            "downloads": self.downloads,
            "total": 0 if pending else self.total,
            "created_at": self.created_at,
            "updated_at": self.created_at,
            **self.told,
        }


# ---- segments, activities, calls


class Segment:
    """A group of people: a manual one holds its members, a dynamic one asks its conditions.

    Times are Unix seconds.
    """

    __slots__ = (
        "number", "name", "description", "members", "conditions", "predicate", "tags",
        "created_at", "updated_at", "state", "progress",
    )  # fmt: skip

    number: int
    name: str
    description: str
    #: By serial number, which is the order of creation.
    members: Dict[int, Person]
    conditions: Annotated[Any, CONDITION_OR_NULL]
    #: The conditions, compiled.
    predicate: Optional[Predicate]
    tags: Annotated[Any, TAGS]
    created_at: int
    updated_at: int
    #: How far the real service was with selecting people, in one that was seeded.
    state: str
    progress: Json

    def __init__(self, number: int, name: str, now: int) -> None:
        self.number, self.name, self.description = number, name, ""
        self.members, self.tags = {}, None
        self.conditions = self.predicate = self.progress = None
        self.created_at = self.updated_at = now
        self.state = "finished"

    @property
    def type(self) -> str:
        """Whether people are put in (`manual`) or selected (`dynamic`)."""
        return "manual" if self.predicate is None else "dynamic"

    def document(self) -> Json:
        """The segment as the App API gives it (observed; the last two since 2026)."""
        return {
            "id": self.number,
            "deduplicate_id": f"{self.number}:{self.updated_at}",
            "name": self.name,
            "description": self.description,
            "state": self.state,
            "progress": self.progress,
            "type": self.type,
            "tags": self.tags,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }

    def record(self) -> SegmentRecord:
        """The segment as `/__parlel/segments` shows it; members of manual ones only."""
        names = [person.name for person in self.members.values()]
        return cast(SegmentRecord, {**self.document(), "customer_ids": names})


class Activity(NamedTuple):
    """Something that happened, for the activity lists. `data` is made when it is asked for."""

    serial: int
    when: Instant
    type: str
    person: Optional[Person]
    name: str
    data: Callable[[], Json]
    delivery: Optional[Delivery] = None
    #: What the real service told of one that was seeded, and nobody can know here.
    told: Mapping[str, Any] = {}

    def tells_of(self, attribute: str) -> bool:
        """Whether it is about a change of this attribute, be it one that failed."""
        return self.type.endswith("attribute_change") and attribute in self.data()


class Merge(NamedTuple):
    """A merge call and whether it did anything."""

    primary: Identifier
    secondary: Identifier
    applied: bool
    received_at: int

    def record(self) -> MergeRecord:
        """The merge as `/__parlel/merges` shows it: each side as the client names it."""
        return {
            "primary": dict([self.primary]),
            "secondary": dict([self.secondary]),
            "applied": self.applied,
            "received_at": self.received_at,
        }


class Batch(NamedTuple):
    """A batch call. What it asked for is kept as JSON: a fifth of the memory."""

    number: int
    source: str
    operations: Annotated[bytes, OPERATIONS]
    received_at: int

    def record(self) -> BatchRecord:
        """The batch as `/__parlel/batches` shows it."""
        return {
            "id": self.number,
            "source": self.source,
            "operations": decode_json(self.operations),
            "received_at": self.received_at,
        }


# ---- what is made in the web app


class Shelf:
    """Records of one kind that people make in the web app or through the App API.

    `rows` are what the API shows, by id, in order of creation; a change replaces a row. While
    an `open` shelf is empty of seeded rows, an unknown number is taken for something made where
    we can't see it, and gets a blank row.
    """

    kind: str
    open: bool
    rows: Dict[Annotated[Any, KEY], Attributes]
    last: int

    def __init__(self, kind: str, open: bool = False) -> None:
        self.kind, self.open = kind, open
        self.rows, self.last = {}, 0

    def next_id(self) -> int:
        """A number that no row has."""
        self.last += 1
        while self.last in self.rows:
            self.last += 1
        return self.last

    def add(self, row: Json, id: Any = None, kept: bool = True) -> Json:
        """Put a row up under an id, the next number unless it is given; gives the row.

        Unless it is `kept`, that is all: for reads, which change nothing.
        """
        last, key = self.last, self.next_id() if id is None else id
        row = {"id": key, **row}
        if kept:
            self.rows[key] = row
        else:
            self.last = last
        return row

    def change(self, id: Any, update: Json) -> Json:
        """Replace some fields of a row; gives the new row."""
        self.rows[id] = {**self.rows[id], **update}
        return self.rows[id]

    def where(self, **wanted: Any) -> List[Json]:
        """The rows that have all these values."""
        rows = list(self.rows.values())
        for name, value in wanted.items():
            rows = [row for row in rows if row.get(name) == value]
        return rows


#: The shelves of what only the web app can make.
OPEN_SHELVES = ("campaigns", "broadcasts", "transactional", "newsletters", "sender_identities")


def _or_null(check: Check) -> Check:
    return Check(f"{check.type}, or null", lambda v: "" if v is None else check.wrong(v))


def _decode_base64(value: Json, name: str) -> bytes:
    try:
        return base64.b64decode(value)
    except (TypeError, ValueError):
        raise invalid(f"{name} must be a text in base64", name) from None


def _condition(value: Json, name: str) -> Any:
    return value and compile_filter(value, name, lambda person, number: False)


def stored(needed: str = "", /, **names: str) -> FieldList:
    """The fields of a row by what they are; there may be others, as real answers have more."""
    checks = {name: _STORED[type] for type, some in names.items() for name in some.split()}
    return FieldList(checks, needed.split(), free="answers of the real API have further fields")


def _row_field(needed: str = "", /, **names: str) -> Check:
    return object_field(stored(needed, **names))


CONDITION_OR_NULL = read_field("a condition, or null", _condition)
TAGS, KEY = _or_null(list_field(ANY_TEXT)), typed_field(int, str)
#: What a field of a row can be, beside what any field can.
_STORED: Dict[str, Check] = {
    **WORDS, "texts": list_field(ANY_TEXT), "words": list_field(KEY), "objects": list_field(OBJECT),
    "seconds": typed_field(int, float), "condition": CONDITION_OR_NULL,
    "base64": read_field("base64", _decode_base64), "family": choice_field(*OPEN_SHELVES),
    "headers": mapping_field(list_field(ANY_TEXT, 1)),
    # Those that may be null.
    "once": _or_null(MOMENT), "tags": TAGS, "some_word": _or_null(KEY),
    "some_text": _or_null(ANY_TEXT), "some_object": _or_null(OBJECT),
    "some_numbers": _or_null(list_field(WHOLE)), "moments": _or_null(mapping_field(MOMENT)),
}  # fmt: skip
_STORED["files"] = _or_null(mapping_field(_STORED["base64"]))
_STORED["links"] = list_field(
    _row_field("id href tracked", whole="id", text="href", flag="tracked")
)
# The parts of a Design Studio email, and what it is linked to.
_STORED["pairs"] = list_field(_row_field("name value", text="name value"))
_MAIL_TEXTS = "subject preheader_text html text amp"
_STORED["html"] = _row_field(_MAIL_TEXTS, text=_MAIL_TEXTS)
_STORED["envelope"] = _row_field(
    "from_id reply_to_id recipient bcc fake_bcc headers", maybe="from_id reply_to_id",
    text="recipient bcc cc", flag="fake_bcc", pairs="headers",
)  # fmt: skip
_STORED["components"] = list_field(_row_field("id name tag content", text="id name tag content"))
_PARTS_OF_MAIL = {"html": "content", "envelope": "envelope", "object": "transformers"}
_STORED["parts"] = _row_field(
    "content envelope transformers components", components="components", **_PARTS_OF_MAIL
)
_STORED["link"] = _or_null(
    _row_field("family template_id target", family="family", whole="template_id", object="target")
)

# Rows that stand elsewhere than on a shelf.
MESSAGE = _row_field(files="attachments", some_object="custom_device")
RENDERED = _row_field(
    text="subject body body_plain body_amp preheader from reply_to to cc bcc",
    links="links", headers="headers",
)  # fmt: skip
HAPPENED = _row_field("metric timestamp", text="metric reason", whole="timestamp")
ATTEMPT = _row_field("endpoint_id at retry_at", whole="endpoint_id", seconds="at", any="retry_at")
TRIGGER = _row_field(
    "id campaign_id payload errors processed_at received_at", whole="id campaign_id",
    object="payload", texts="errors", once="processed_at", moment="received_at",
)  # fmt: skip
SUPPRESSION = _row_field(
    "created email reason status", moment="created", text="email reason status"
)
INDEXED = _row_field("name", text="name")
OPERATIONS = read_field("JSON", lambda value, name: decode_json(value))


def _content_fields(more: str = "") -> FieldList:
    texts = "name type language layout body body_amp subject from reply_to preprocessor recipient"
    texts += " bcc cc preheader_text"
    needed = f"id _parent from_id reply_to_id fake_bcc headers created updated {texts} {more}"
    return stored(
        needed, text=f"{texts} sending_state", whole="id _parent parent_action_id", flag="fake_bcc",
        maybe="from_id reply_to_id sender_identity_id", moment="created updated", any="headers",
    )  # fmt: skip


_ACTION_FIELDS = _content_fields("sending_state parent_action_id")
_IN_FOLDER = "id name created updated"
_EMAIL_PARTS = "content envelope transformers created updated"

#: The shelves of a workspace, and what their rows have.
SHELVES: Dict[str, FieldList] = {
    "campaigns": stored(
        "id name type created updated", whole="id", text="name type state event_name",
        moment="created updated", once="first_started", flag="active", tags="tags",
        some_numbers="trigger_segment_ids filter_segment_ids",
    ),
    "broadcasts": stored(
        "id name type created updated", whole="id", text="name type state",
        moment="created updated", once="first_started", flag="active", tags="tags",
        condition="recipients",
    ),
    "transactional": stored(
        "id name created_at updated_at", whole="id", text="name description trigger_name",
        moment="created_at updated_at", flag="send_to_unsubscribed link_tracking open_tracking "
        "hide_message_body queue_drafts",
    ),
    "newsletters": stored(
        "id name type created updated sent_at", whole="id", text="name type",
        moment="created updated", once="sent_at scheduled_at", tags="tags",
        some_numbers="recipient_segment_ids", maybe="subscription_topic_id",
        condition="_recipients",
    ),
    "campaign_actions": _ACTION_FIELDS,
    "broadcast_actions": _ACTION_FIELDS,
    "newsletter_contents": _content_fields(),
    "transactional_contents": _content_fields(),
    "test_groups": stored(
        "id _parent content_ids", word="id", whole="_parent", words="content_ids",
        text="name label", flag="winner",
    ),
    "sender_identities": stored(
        "id", whole="id", text="name email phone address template_type deduplicate_id",
        flag="auto_generated hidden",
    ),
    "topics": stored(
        "id", whole="id", text="name description identifier", flag="subscribed_by_default"
    ),
    "channels": stored(
        "id", whole="id", text="name description type", flag="subscribed_by_default"
    ),
    "object_types": stored(
        "id", word="id", text="name singular_name slug singular_slug icon", flag="enabled"
    ),
    "collections": stored(
        "id _content", whole="id", text="name", objects="_content", moment="created_at updated_at"
    ),
    "snippets": stored("name value updated_at", text="name value", moment="updated_at"),
    "reporting_webhooks": stored(
        "id endpoint events disabled full_resolution with_content", whole="id",
        text="name endpoint type", texts="events", flag="disabled full_resolution with_content",
    ),
    "imports": stored("id", whole="id", text="name type state", moment="created_at updated_at"),
    "workspaces": stored("id", word="id", text="name"),
    "assets": stored(
        f"{_IN_FOLDER} _type _data parent_folder_id", whole="id size", text="name _type",
        base64="_data", moment="created updated", maybe="parent_folder_id",
    ),
    "asset_folders": stored(
        f"{_IN_FOLDER} parent_folder_id", whole="id", text="name", moment="created updated",
        maybe="parent_folder_id",
    ),
    "live_notifications": stored(
        "id notification_type attributes content_state platform started_at expires_at "
        "last_delivery _serial _name _token", whole="_serial",
        text="id notification_type platform _name _token",
        moment="started_at expires_at ended_at", object="attributes content_state last_delivery",
    ),
    "ds_emails": stored(
        f"{_IN_FOLDER} is_template parent_folder_id _link _published {_EMAIL_PARTS}",
        text="id name", flag="is_template", moment="created updated",
        **_PARTS_OF_MAIL, some_text="parent_folder_id",
        link="_link", some_object="_published",
    ),
    "ds_translations": stored(
        f"id language language_group_id {_EMAIL_PARTS}", text="id language language_group_id",
        moment="created updated", **_PARTS_OF_MAIL,
    ),
    "ds_components": stored(
        f"{_IN_FOLDER} tag content parent_folder_id", text="id name tag content",
        moment="created updated", some_text="parent_folder_id",
    ),
    "ds_folders": stored(
        f"{_IN_FOLDER} parent_folder_id", text="id name", moment="created updated",
        some_text="parent_folder_id",
    ),
    "ds_versions": stored(
        "id name node_id created created_on_publish _parts _of", text="id name node_id _of "
        "description", moment="created", flag="created_on_publish feedback", parts="_parts",
    ),
    "ds_publishes": stored("id status _email", text="id status _email _error", whole="_status"),
    "ds_previews": stored(
        "id name node_id created_at updated_at client_ids _subject _text _wrong _order",
        whole="id", text="name node_id _subject _text", moment="created_at updated_at",
        texts="client_ids _wrong", object="_order",
    ),
    "inbox_preview_clients": stored("id", word="id", text="client category os browser name"),
    "inbox_preview_credits": stored(
        "id tier credits_original credits_remaining", whole="id credits_original credits_remaining",
        text="tier", once="expires_at",
    ),
}  # fmt: skip


# ---- what the parts of a workspace stand on

#: How many activities are kept; older ones are forgotten.
MAX_ACTIVITIES = 50_000

Listeners = Tuple[Callable[..., Any], ...]


class Occasions:
    """Who wants to know of what happens in a workspace: functions, by the kind of occasion.

    Nobody, until somebody joins; going through nobody costs next to nothing.

    changed(person, old): attributes are others than `old`, or an identifier is
    happened(event, person): an event of a person
    joined(person, number), left(person, number): manual segments
    refused(who, args): a write for somebody who is suppressed
    reported(delivery, metric, when, first, fact): something became of a message
    subscription(person, what, cause, text): a person wants other messages than before
    related(person, key, change): `add`, `update` or `delete` of a relationship
    thing(thing, old): attributes of an object are others than `old`, which is None for a new one
    gone(person): deleted or suppressed
    merged(primary, secondary): two people are one
    rested(number): an endpoint of reporting webhooks may be tried again
    submitted(form_id, data, who): a form
    called(number, delivery, attempt): a journey wants an endpoint to be called
    settled(): a write is over, with all that it brought about
    """

    __slots__ = KINDS = (
        "called", "changed", "gone", "happened", "joined", "left", "merged", "related",
        "refused", "reported", "rested", "settled", "submitted", "subscription", "thing",
    )  # fmt: skip

    called: Listeners
    changed: Listeners
    gone: Listeners
    happened: Listeners
    joined: Listeners
    left: Listeners
    merged: Listeners
    related: Listeners
    refused: Listeners
    reported: Listeners
    rested: Listeners
    settled: Listeners
    submitted: Listeners
    subscription: Listeners
    thing: Listeners

    def __init__(self) -> None:
        self.forget()

    def join(self, **listeners: Callable[..., Any]) -> None:
        """Tell a function of a kind of occasion from now on, after those who joined before."""
        for kind, tell in listeners.items():
            setattr(self, kind, (*getattr(self, kind), tell))

    def forget(self) -> None:
        """Tell nobody any more."""
        for kind in self.KINDS:
            setattr(self, kind, ())


def kept(make: Callable[[], Any]) -> Any:
    """A field of a part of a workspace: begins with what `make` gives, and is in snapshots."""
    return field(init=False, default_factory=make, metadata={"kept": True})


@dataclass(eq=False, repr=False)
class Ground:
    """What all parts of a workspace stand on: time, numbers, the log, and who listens."""

    settings: Settings
    clock: Clock = field(init=False, default_factory=Clock)
    counters: Dict[str, int] = kept(dict)
    #: The newest activities, oldest first.
    activities: Deque[Activity] = kept(lambda: deque(maxlen=MAX_ACTIVITIES))
    noted: int = kept(int)

    def __post_init__(self) -> None:
        """Nobody listens yet."""
        self.occasions = Occasions()

    def count(self, what: str) -> int:
        """The next number of a kind, from 1 up."""
        number = self.counters[what] = self.counters.get(what, 0) + 1
        return number

    def seconds(self) -> int:
        """The current time in whole Unix seconds."""
        return int(self.clock.now())

    def note(
        self,
        type: str,
        person: Optional[Person],
        data: Callable[[], Json] = dict,
        name: str = "",
        delivery: Optional[Delivery] = None,
    ) -> None:
        """Write an activity down."""
        self.noted += 1
        when = self.clock.now()
        self.activities.append(Activity(self.noted, when, type, person, name, data, delivery))


#: Serial numbers of people, and what they have.
Owners = Set[Tuple[int, Any]]


@dataclass(eq=False, repr=False)
class Keeper:
    """A part of a workspace that keeps some of what people have; see OWNED."""

    ground: Ground

    def release(self, person: Person) -> None:
        """Let go of what a person has, who is going to be deleted."""

    def carry_over(self, old: Person, to: Person) -> None:
        """Give what one person has to another one, who takes their place."""

    def claim(self, person: Person, anonymous_id: str) -> None:
        """Give a person what was kept under an anonymous_id."""

    def owners(self, kind: str) -> Owners:
        """Who has what of a kind, as this part knows it: serial numbers and keys."""
        raise NotImplementedError


# ======================================================================================
# ==== §8 People
# ======================================================================================

#: Limits of the Track API (reference). Sizes in bytes of UTF-8.
MAX_IDENTIFIER = 150

_EMAIL_SHAPE = re.compile(r"[^@\s]+@(?=[^@\s]+\Z)[^@\s]+\.[^@\s]+")  # looks ahead once

MAX_ATTRIBUTE_NAME = 150
MAX_ATTRIBUTE_VALUE = 1000
MAX_ATTRIBUTES = 300

#: Why an identifier was not set: the first as integrators see it, the others are ours.
_TAKEN = "The identifier is already associated with a different profile."
_SET = "The identifier is set already, and this call can't change it."
_NOBODYS = "No profile has the identifier."

# What an identify call carries beside attributes (reference).
_CONTROL_KEYS = {"id", "cio_id", "_update", "_timestamp", "cio_relationships"}
# Structured attributes with their own rules; the 1000-byte limit is for plain values.
_PREFERENCES = "cio_subscription_preferences"
_DOTTED_PREFERENCES = _PREFERENCES + "."


# ---- identifiers


def identifier_text(value: Json, name: str) -> str:
    """An identifier's value as text; numbers are welcome. Raises ApiError 400."""
    if type(value) is str and 0 < len(value) <= MAX_IDENTIFIER // 4:
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise invalid(f"{name} must be a string, not {kind_of(value)}", name)
    text = as_text(value)
    if not text:
        raise required(name)
    if _longer(text, MAX_IDENTIFIER):
        raise invalid(f"{name} cannot be longer than {MAX_IDENTIFIER} bytes", name)
    return text


def one_identifier(
    identifiers: Json, kinds: Sequence[str], name: str, settings: Optional[Settings] = None
) -> Identifier:
    """Exactly one identifier out of an `identifiers` object. Raises ApiError 400."""
    wanted = f"an object with exactly one of: {', '.join(kinds)}"
    if not isinstance(identifiers, dict):
        raise required(name, wanted)
    given = {kind: value for kind, value in identifiers.items() if value not in (None, "")}
    if len(given) != 1 or not set(given) <= set(kinds):
        raise invalid(f"{name} must be {wanted}", name, "invalid" if given else "required")
    ((kind, value),) = given.items()
    return kind, identifier_text(value, f"{name}.{kind}")


# ---- attributes


def changed(
    attributes: Attributes, timestamps: Dict[str, int], update: Attributes, when: int
) -> Tuple[Attributes, Dict[str, int]]:
    """Lay an update over attributes and their timestamps, without touching the old dicts.

    Gives what is there then, the very same dicts if nothing changes. null and "" delete; the
    timestamp of an equal value stays (observed), others are `when`, in Unix seconds.
    """
    new, stamps = attributes, timestamps
    for name, value in update.items():
        have = attributes.get(name)
        # In Python True == 1 == 1.0, but their texts differ, also deep inside.
        if (
            type(have) is type(value)
            and have == value
            and (type(value) in _FLAT or as_text(have) == as_text(value))
        ):
            continue
        gone = value is None or value == ""
        if gone and have is None:
            continue
        if new is attributes:
            new, stamps = dict(attributes), dict(timestamps)
        if gone:
            del new[name]
            stamps.pop(name, None)
        else:
            name = sys.intern(name)  # one copy of each name, however many people have it
            new[name], stamps[name] = value, when
    return new, stamps


def difference(old: Attributes, new: Attributes) -> Json:
    """What changed, as an activity tells it: `{name: {from, to}}`, as text (reference)."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    texts = [{name: as_text(side[name]) for name in names if name in side} for side in (old, new)]
    return {name: {"from": texts[0].get(name, ""), "to": texts[1].get(name, "")} for name in names}


def _left_out(skipped: Sequence[str], surplus: Sequence[str]) -> Outcome:
    """Why part of an update was not done."""
    text = joined(
        f"too many attributes: {', '.join(surplus)[:200]} left out" if surplus else "",
        f"skipped_update: {', '.join(skipped)[:200]} changed later" if skipped else "",
    )
    return Outcome("partial", text)


#: Names of attributes that were seen to be short and to mean nothing to the service itself. Nearly
#: every request has no others, which one comparison of sets tells.
_ORDINARY: Set[str] = set()
_MOST_ORDINARY = 10_000
#: Names, beside those in `cio_…`, of attributes that bring something about.
_TELLING = {"timezone", "unsubscribed", "anonymous_id"}


def ordinary(attributes: Attributes) -> bool:
    """Whether all attributes have names that are short and mean nothing to the service itself."""
    if _ORDINARY.issuperset(attributes):
        return True
    if len(_ORDINARY) > _MOST_ORDINARY:
        _ORDINARY.clear()
    unknown = [name for name in attributes if name not in _ORDINARY and name not in _TELLING]
    names = [name for name in unknown if len(name) <= _SHORT_NAME and name[:4] != "cio_"]
    _ORDINARY.update(map(sys.intern, names))
    return _ORDINARY.issuperset(attributes)


def _known_zone(name: Json) -> Optional[str]:
    """`cio_timezone` is computed from a `timezone` that exists, and goes with one that doesn't."""
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name).key
    except (TypeError, ValueError, OSError, KeyError):
        return None


def completed(attributes: Attributes, current: Attributes) -> Attributes:
    """Attributes with what follows from them: the computed time zone, preferences as a whole."""
    if "timezone" in attributes:
        attributes = {**attributes, "cio_timezone": _known_zone(attributes["timezone"])}
    return undotted(attributes, current)


def undotted(attributes: Attributes, current: Attributes) -> Attributes:
    """Fold `cio_subscription_preferences.topics.topic_1: true` into the whole (reference)."""
    if not any(name.startswith(_DOTTED_PREFERENCES) for name in attributes):
        return attributes
    plain = {}
    whole: Json = attributes.get(_PREFERENCES) or current.get(_PREFERENCES)
    parts = whole.items() if isinstance(whole, dict) else ()
    whole = {key: dict(part) for key, part in parts if isinstance(part, dict)}
    for name, value in attributes.items():
        if name.startswith(_DOTTED_PREFERENCES):
            part, _, entry = name[len(_DOTTED_PREFERENCES) :].partition(".")
            whole.setdefault(part, {})[entry] = value
            if value is None:
                del whole[part][entry]
        else:
            plain[name] = value
    return {**plain, _PREFERENCES: whole}


# A character takes four bytes at most, so up to here nothing need be encoded.
_SHORT_NAME, _SHORT_VALUE = MAX_ATTRIBUTE_NAME // 4, MAX_ATTRIBUTE_VALUE // 4
_SMALL = frozenset({bool, float, type(None)})


def all_short(attributes: Attributes) -> bool:
    """Whether no name is so long that its bytes need be counted."""
    return len(max(attributes, key=len, default="")) <= _SHORT_NAME


def all_small(attributes: Attributes) -> bool:
    """Whether these are few attributes with short strings, numbers and such as values."""
    for value in attributes.values():
        kind = type(value)
        if not (
            (kind is str and len(value) <= _SHORT_VALUE)
            or (kind is int and -MAX_NUMBER <= value <= MAX_NUMBER)
            or kind in _SMALL
        ):
            return False
    return len(attributes) <= MAX_ATTRIBUTES


def oversized(attributes: Attributes) -> List[Problem]:
    """Which attributes break a limit of the reference; empty if none does."""
    problems = []
    if len(attributes) > MAX_ATTRIBUTES:
        text = f"too many attributes: {len(attributes)}, but {MAX_ATTRIBUTES} at most"
        problems.append(Problem(text, "attributes"))
    for name, value in attributes.items():
        if _longer(name, MAX_ATTRIBUTE_NAME):
            text = f"attribute name '{name}' cannot be longer than {MAX_ATTRIBUTE_NAME} bytes"
            problems.append(Problem(text, "attributes"))
        if _too_long_value(name, value):
            # The words are the real service's (observed).
            text = f"value for attribute '{name}' cannot be longer than {MAX_ATTRIBUTE_VALUE} bytes"
            problems.append(Problem(text, f"attributes.{name}"))
    return problems


def _too_long_value(name: str, value: Json) -> bool:
    kind = type(value)
    if kind is str:
        return _longer(value, MAX_ATTRIBUTE_VALUE)
    if kind is int:
        return bool(value.bit_length() > 3 * MAX_ATTRIBUTE_VALUE) and _longer(
            as_text(value), MAX_ATTRIBUTE_VALUE
        )
    if kind is not dict and kind is not list:
        return False
    return not name.startswith("cio_") and _longer(as_text(value), MAX_ATTRIBUTE_VALUE)


def checked_attributes(value: Json, name: str) -> Attributes:
    """Attributes within the limits. Raises ApiError 400 with one sentence for each breach."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{name} must be an object, not {kind_of(value)}", name)
    for kind in ("id", "email", "phone"):
        if kind in value and value[kind] not in (None, ""):
            identifier_text(value[kind], kind)
    plain, problems = ordinary(value), []
    if not all_small(value) or not (plain or all_short(value)):
        problems += oversized(value)
    if not plain:
        problems += misshapen_preferences(value)
    if problems:
        raise ApiError(400, *problems)
    return value


def misshapen_preferences(attributes: Attributes) -> List[Problem]:
    """What is wrong with subscription preferences: objects of yes and no, whole or dotted."""
    whole, wrong = attributes.get(_PREFERENCES), []
    parts = whole.values() if isinstance(whole, dict) else () if whole in (None, "") else (whole,)
    if not all(isinstance(part, dict) for part in parts):
        text = f"{_PREFERENCES} must be an object of objects, as in {{topics: {{topic_1: true}}}}"
        wrong.append(Problem(text, _PREFERENCES))
    for name in attributes:
        if name.startswith(_PREFERENCES + ".") and name.count(".") != 2:
            text = f"{name} must be named like {_PREFERENCES}.topics.topic_1"
            wrong.append(Problem(text, name))
    return wrong


# ---- devices


def push_token(value: Json, name: str) -> str:
    """A device's token as text. Raises ApiError 400."""
    if value in (None, ""):
        raise required(name, "the push token")
    if isinstance(value, (dict, list, bool)):
        raise invalid(f"{name} must be a string, not {kind_of(value)}", name)
    return as_text(value)


DEVICE_FIELDS = LAX.having(
    "platform", scalar="id token", platform=choice_field("ios", "android"), number="last_used",
    object="attributes",
)  # fmt: skip


def device_of(device: Json, token_key: str, now: int) -> Tuple[str, str, int, Attributes]:
    """Token, platform, last_used and attributes of a `device` object. Raises ApiError 400.

    `last_used` is `now`, Unix seconds, unless it is given (reference).
    """
    if not isinstance(device, dict):
        raise required("device", f"an object with {token_key} and platform")
    token = push_token(device.get(token_key) or device.get("id"), f"device.{token_key}")
    platform = as_text(device.get("platform") or "").lower()  # the iOS SDK writes "iOS"
    DEVICE_FIELDS.read({**device, "platform": platform}, "device.")
    attributes = checked_attributes(device.get("attributes"), "device.attributes")
    text = {k: as_text(v) for k, v in attributes.items() if v is not None and k != LAST_STATUS}
    last_used = whole_number(device.get("last_used"), "device.last_used")
    return token, platform, now if last_used is None else last_used, text


# ---- everybody


def _folded(who: Identifier) -> Identifier:
    """An identifier as it is compared: email without case (reference)."""
    return (who[0], who[1].lower()) if who[0] == "email" else who


_IDENTIFIERS = {"email_or_id": ("id", "email"), "id": ("id",), "email": ("email",)}


@dataclass(eq=False, repr=False)
class Directory:
    """Everybody in a workspace, found by id, email, phone or cio_id in O(1)."""

    ground: Ground

    def __post_init__(self) -> None:
        """Begin with nobody."""
        self.settings = settings = self.ground.settings
        # By serial number; None for who is gone. A list takes a tenth of a dict's memory.
        self._serials: List[Optional[Person]] = []
        self._gone = 0
        self._ids: Dict[str, Person] = {}
        self._phones: Dict[str, Person] = {}
        # A tuple where an email repeats, which it can in an id-only workspace.
        self._emails: Dict[str, Union[Person, Tuple[Person, ...]]] = {}
        self._stamps: Dict[str, int] = {}
        self._email_identifies = settings.identifiers != "id"
        #: The kinds of identifier that this workspace knows people by, besides cio_id.
        self.kinds = (*_IDENTIFIERS[settings.identifiers], *(["phone"] if settings.phone else []))

    def __iter__(self) -> Iterator[Person]:
        return filter(None, self._serials)

    def __reversed__(self) -> Iterator[Person]:
        return filter(None, reversed(self._serials))

    def __len__(self) -> int:
        return len(self._serials) - self._gone

    def at(self, serial: int) -> Optional[Person]:
        """The person with a serial number."""
        return self._serials[serial] if 0 <= serial < len(self._serials) else None

    def __contains__(self, person: Optional[Person]) -> bool:
        return person is not None and self.at(person.serial) is person

    def find(self, who: Identifier) -> Optional[Person]:
        """The one person with this identifier."""
        kind, value = who
        if kind == "id":
            return self._ids.get(value)
        if kind == "email":
            found = self._emails.get(value.lower()) if self._email_identifies else None
            return found if found is None or type(found) is Person else cast(Any, found)[0]
        if kind == "phone":
            return self._phones.get(value)
        serial = serial_of(value)
        return None if serial is None else self.at(serial)

    def with_email(self, email: str) -> Tuple[Person, ...]:
        """All people with this address, in any case."""
        found = self._emails.get(email.lower(), ())
        return found if isinstance(found, tuple) else (found,)

    @property
    def gone(self) -> int:
        """How many there were who are not here any more."""
        return self._gone

    def fill(self, serials: Sequence[Optional[Person]]) -> None:
        """Take everybody in, by serial number. Raises ApiError 400 for an identifier of two."""
        for serial, person in enumerate(serials):
            self._serials.append(person)
            if person is None:
                self._gone += 1
                continue
            if person.serial != serial:
                raise invalid(f"people: serial {person.serial} stands at {serial}", "people")
            for kind, index in (("id", self._ids), ("phone", self._phones)):
                value = getattr(person, kind)
                if value and index.setdefault(value, person) is not person:
                    raise invalid(f"people: two have the {kind} {value!r}", "people")
            if person.email and self.find(("email", person.email)):
                raise invalid(f"people: two have the email {person.email!r}", "people")
            email, person.email = person.email, ""
            self.set_email(person, email)
            person.timestamps = self.shared(person.timestamps)

    def create(self, now: int) -> Person:
        """A new person without identifiers but the cio_id."""
        person = Person(len(self._serials), now)
        self._serials.append(person)
        return person

    def name(self, person: Person, who: Identifier, now: int) -> None:
        """Give `person` an identifier that nobody else has, in place of an old one."""
        (kind, value), old = who, person.attributes
        if kind == "email":
            self.set_email(person, value)
            person.attributes = {**person.attributes, "email": value}
        else:
            index = self._ids if kind == "id" else self._phones
            index.pop(getattr(person, kind), None)
            index[value] = person
            setattr(person, kind, value)
        person.timestamps = {**person.timestamps, kind: now}
        for tell in self.ground.occasions.changed:
            tell(person, old)

    def set_email(self, person: Person, email: str) -> None:
        """Keep the index right when the address changes; "" takes it away."""
        if person.email:
            rest = [other for other in self.with_email(person.email) if other is not person]
            self._file_email(person.email, rest)
        if email:
            self._file_email(email, [*self.with_email(email), person])
        person.email = email

    def _file_email(self, email: str, people: List[Person]) -> None:
        key = email.lower()
        if not people:
            del self._emails[key]
        else:
            # An address that is in lower case already is kept once.
            key = email if key == email else key
            self._emails[key] = people[0] if len(people) == 1 else tuple(people)

    def shared(self, stamps: Dict[str, int]) -> Dict[str, int]:
        """The same timestamps in as few dicts as possible: people who come together share one."""
        if stamps != self._stamps:
            self._stamps = stamps
        return self._stamps

    def discard(self, person: Person) -> None:
        """Take a person out of every index."""
        self._serials[person.serial] = None
        self._gone += 1
        self.set_email(person, "")
        self._ids.pop(person.id, None)
        self._phones.pop(person.phone, None)

    def may_rename(self, person: Person, kind: str, by: str) -> bool:
        """Whether an identifier of `kind` may be set by a call that named the person `by` kind.

        Once set, it changes only through cio_id; the setting lets an id change the email.
        """
        if not getattr(person, kind) or by == "cio_id":
            return True
        return kind == "email" and (self.settings.update_email_by_id and by == "id")


@dataclass(eq=False, repr=False)
class People(Directory):
    """Who is who: the verbs of Track that make, change, merge, suppress and delete people.

    Verbs return what became of them.
    """

    suppressions: Dict[str, Set[Identifier]] = kept(dict)
    blocked: Dict[Identifier, str] = kept(dict)
    merges: List[Merge] = kept(list)

    def __post_init__(self) -> None:
        """Begin with nobody, whose belongings nobody keeps."""
        super().__post_init__()
        #: Who keeps what people have, in the order in which it is carried over.
        self.keepers: Tuple[Keeper, ...] = ()
        # An email or phone that identifies is stored by `name`, under its own rules.
        self._email_follows = self.settings.identifiers == "id"
        named = set() if self._email_follows else {"email"}
        phone = {"phone"} if self.settings.phone else set()
        self._not_attributes = _CONTROL_KEYS | named | phone

    def identify(
        self,
        who: Identifier,
        attributes: Attributes,
        when: Optional[int] = None,
        create: bool = True,
    ) -> Outcome:
        """Create or update a person by the decision table of `PUT /customers/{identifier}`.

        `when` is the time of the update in Unix seconds, if not now.
        """
        now = self.ground.seconds()
        named = self._named(who, attributes)
        if self.blocked and any(_folded(other) in self.blocked for other in named):
            return SUPPRESSED
        person = self.find(who)
        if person is None:
            if self.unnameable(who) is not DONE:
                return self.unnameable(who)
            person = self._anybody(named)
            if person is None and not create:
                told = {who[0]: {"reason": _NOBODYS, "value": who[1]}}
                self.ground.note("failed_attribute_change", None, lambda: told)
                return NOT_CREATED
            if person is None:
                person = self.add(who)
            else:
                self.name(person, who, now)
        outcome = DONE
        for other in named:
            if getattr(person, other[0]) != other[1]:
                outcome = both(outcome, self._rename(person, other, who[0], now))
                if person not in self:  # an auto-merge kept the other one
                    person = cast(Person, self.find(other))
        skipped = self.update(person, attributes, now, when)
        return skipped if outcome is DONE else both(outcome, skipped)

    def unnameable(self, who: Identifier) -> Outcome:
        """Why nobody can be made for an identifier, or DONE."""
        if who[0] == "cio_id":
            return UNKNOWN_CIO_ID
        if who[0] not in self.kinds:
            text = f"unknown identifier: this workspace does not know people by {who[0]}"
            return Outcome("unknown", text)
        return DONE

    def add(self, who: Identifier) -> Person:
        """Make a person with an identifier that nobody has."""
        now = self.ground.seconds()
        person = self.create(now)
        self.name(person, who, now)
        self.ground.note("profile_create", person)
        return person

    def _anybody(self, named: Iterable[Identifier]) -> Optional[Person]:
        return next(filter(None, map(self.find, named)), None)

    def _named(self, who: Identifier, attributes: Attributes) -> List[Identifier]:
        """The identifiers in a body, as far as this workspace identifies people by them."""
        named = []
        for kind in self.kinds:
            value = attributes.get(kind)
            if value is not None and value != "" and (kind, value) != who:
                named.append((kind, as_text(value)))
        return named

    def _rename(self, person: Person, other: Identifier, by: str, now: int) -> Outcome:
        """Give a person an identifier out of a body; returns why that failed, or DONE."""
        kind, value = other
        holder = self.find(other)
        if holder is person:
            if kind == "email" and person.email != value:
                self.name(person, other, now)
            return DONE
        if holder is None and self.may_rename(person, kind, by):
            self.name(person, other, now)
            return DONE
        if holder is not None and self._one_person(person, holder):
            older, newer = sorted((person, holder), key=lambda p: p.serial)
            self._absorb(older, newer)
            return DONE
        owner = "another person" if holder else f"{kind} {getattr(person, kind)!r}"
        told = {kind: {"reason": _TAKEN if holder else _SET, "value": as_text(value)}}
        self.ground.note("failed_attribute_change", person, lambda: told)
        text = f"failed_attribute_change: {kind} {value!r} not set, because of {owner}"
        # What would have let it be set, if anything.
        way = "" if holder else "; name the person by cio_…"
        if way and (kind, by) == ("email", "id"):
            way += ", or set --update-email-by-id"
        return Outcome("partial", text + way)

    def _one_person(self, person: Person, holder: Person) -> bool:
        """Auto-merge: one has only an id, the other only an email (docs, 2021-10-05)."""
        kinds = {(bool(p.id), bool(p.email)) for p in (person, holder)}
        return kinds == {(True, False), (False, True)}

    def update(
        self,
        person: Person,
        attributes: Attributes,
        now: int,
        when: Optional[int] = None,
        cause: Optional[Delivery] = None,
    ) -> Outcome:
        """Update attributes; gives what was skipped and why, or DONE.

        A value newer than `when` (Unix seconds) stays: `_timestamp` orders updates (reference).
        `cause` is the message that the person answered so, if it was one.
        """
        update, plain, surplus = dict(attributes), ordinary(attributes), []
        for name in self._not_attributes.intersection(attributes):
            del update[name]
        old = person.attributes
        if not plain:
            update = completed(update, old)
        skipped = [] if when is None else self._keep_newer(person, update, when)
        new, stamps = changed(old, person.timestamps, update, now if when is None else when)
        if new is not old:
            self.ground.note("attribute_change", person, functools.partial(difference, old, new))
        if len(new) > MAX_ATTRIBUTES:
            surplus = [name for name in new if name not in old]
            new, stamps = without(new, surplus), without(stamps, surplus)
        if person.created_at == now:
            stamps = self.shared(stamps)
        person.attributes, person.timestamps, person.updated_at = new, stamps, now
        if new is not old:
            for tell in self.ground.occasions.changed:
                tell(person, old)
        if self._email_follows or not plain:
            self._follow_up(person, update, old, cause)
        return _left_out(skipped, surplus) if skipped or surplus else DONE

    def _keep_newer(self, person: Person, update: Attributes, when: int) -> List[str]:
        """Take out of an update what was changed after it, and tell; gives the names."""
        names = [name for name in update if person.timestamps.get(name, 0) > when]
        if names:
            have = {name: person.attributes[name] for name in names if name in person.attributes}
            late = {name: update.pop(name) for name in names}
            self.ground.note("skipped_update", person, functools.partial(difference, have, late))
        return names

    def _follow_up(
        self, person: Person, update: Attributes, old: Attributes, cause: Optional[Delivery]
    ) -> None:
        """Do what the change of an attribute brings about."""
        new = person.attributes
        if self._email_follows and "email" in update:
            self.set_email(person, as_text(new.get("email") or ""))
        if "unsubscribed" in update or _PREFERENCES in update:
            self._tell_subscription(person, old, cause)
        if update.get("anonymous_id"):
            for keeper in self.keepers:
                keeper.claim(person, as_text(update["anonymous_id"]))

    def _tell_subscription(
        self, person: Person, old: Attributes, cause: Optional[Delivery]
    ) -> None:
        new, news = person.attributes, []
        was, now = is_unsubscribed(old), is_unsubscribed(new)
        if was != now:
            news.append(("unsubscribed" if now else "subscribed", ""))
        if new.get(_PREFERENCES) != old.get(_PREFERENCES):
            text = as_text(new.get(_PREFERENCES) or {})
            news.append(("cio_subscription_preferences_changed", text))
        for what, text in news:
            for tell in self.ground.occasions.subscription:
                tell(person, what, cause, text)

    def delete(self, who: Identifier) -> Outcome:
        """Remove a person with everything; what happened stays, but shows no person."""
        person = self.find(who)
        if person is None:
            return NO_PERSON
        self._remove(person)
        return DONE

    def _remove(self, person: Person) -> None:
        for keeper in self.keepers:
            keeper.release(person)
        self._end(person, "profile_delete")
        for tell in self.ground.occasions.gone:
            tell(person)

    def _end(self, person: Person, activity: str) -> None:
        named = person.identifiers()
        self.ground.note(activity, person, lambda: named)
        self.discard(person)

    def suppress(self, who: Identifier) -> Outcome:
        """Delete a person and block all identifiers that they had."""
        person = self.find(who)
        if person is None and who[0] == "cio_id":
            return UNKNOWN_CIO_ID
        shown, blocked = who[1], {_folded(who)}
        if person is not None:
            shown = person.name
            kinds = ("id", "email", "phone")
            named = [(kind, getattr(person, kind)) for kind in kinds if getattr(person, kind)]
            blocked |= set(map(_folded, named))
            self._remove(person)
        self.suppressions[shown] = blocked
        self.blocked.update(dict.fromkeys(blocked, shown))
        return DONE

    def unsuppress(self, who: Identifier) -> Outcome:
        """Free the identifiers of a suppressed person; the person does not come back."""
        shown = self.blocked.get(_folded(who))
        if shown is None:
            return NOT_SUPPRESSED
        for identifier in self.suppressions.pop(shown):
            self.blocked.pop(identifier, None)
        return DONE

    def merge(self, who: Identifier, secondary: Identifier) -> Outcome:
        """Merge the secondary person into the primary one, `who`; the secondary is deleted."""
        primary, other = self.find(who), self.find(secondary)
        applied = primary is not None and other is not None and primary is not other
        self.merges.append(Merge(who, secondary, applied, self.ground.seconds()))
        if primary is None or other is None:
            missing = "primary" if primary is None else "secondary"
            text = f"unknown person: the {missing} of this merge does not exist"
            return Outcome("unknown", text)
        if primary is other:
            return SAME_PERSON
        self._absorb(primary, other)
        return DONE

    def _absorb(self, primary: Person, secondary: Person) -> None:
        """Carry over what the reference lists; where both have something, the primary's stays."""
        named = [(kind, getattr(secondary, kind)) for kind in ("id", "email", "phone")]
        attributes, stamps = secondary.attributes, secondary.timestamps
        for keeper in self.keepers:
            keeper.carry_over(secondary, primary)
        secondary.has = _NOTHING
        self._end(secondary, "profile_merge")
        now = self.ground.seconds()
        for kind, value in named:
            if value and not getattr(primary, kind):
                self.name(primary, (kind, value), now)
        absent = {k: v for k, v in attributes.items() if primary.attributes.get(k) in (None, "")}
        ours, theirs = primary.attributes.get(_PREFERENCES), attributes.get(_PREFERENCES)
        primary.attributes = {**primary.attributes, **absent}
        if isinstance(ours, dict) and isinstance(theirs, dict):
            whole = {
                part: {**theirs.get(part, {}), **ours.get(part, {})} for part in {**theirs, **ours}
            }
            primary.attributes[_PREFERENCES] = whole
        primary.timestamps = {**{name: stamps[name] for name in absent}, **primary.timestamps}
        primary.updated_at = now
        for tell in self.ground.occasions.merged:
            tell(primary, secondary)


@dataclass(eq=False, repr=False)
class Devices(Keeper):
    """The push tokens of people; each is one person's."""

    people: People
    rows: Dict[str, Device] = kept(dict)

    def add_device(
        self, who: Identifier, token: str, platform: str, last_used: int, attributes: Attributes
    ) -> Outcome:
        """Add or update a device; a token moves to the person who was seen with it last."""
        person = self.people.find(who)
        if person is None:
            if (why := self.people.unnameable(who)) is not DONE:
                return why
            person = self.people.add(who)
        known = self.rows.get(token)
        if known is not None:
            del known.person.has.devices[token]
            if known.person is person:
                attributes = {**known.attributes, **attributes}
        device = Device(token, platform, last_used, attributes, person)
        self.rows[token] = person.own().devices[token] = device
        self.ground.note("device_change", person, lambda: {"token": token, "platform": platform})
        return DONE

    def delete_device(self, who: Identifier, token: str) -> Outcome:
        """Take a device away from a person."""
        person = self.people.find(who)
        if person is None:
            return NO_PERSON
        if token not in person.has.devices:
            return NO_DEVICE
        del person.has.devices[token], self.rows[token]
        return DONE

    def mark(self, token: str, metric: str, reason: Json) -> None:
        """Keep what happened to the last push on a device; who is unregistered goes (docs)."""
        device = self.rows.get(token)
        if device is None:
            return
        if metric == "bounced" and "unregistered" in as_text(reason or "").lower():
            del self.rows[token], device.person.has.devices[token]
        else:
            device.attributes = {**device.attributes, LAST_STATUS: _DEVICE_STATUS[metric]}

    def release(self, person: Person) -> None:
        """The tokens go with their person."""
        for token in person.has.devices:
            del self.rows[token]

    def carry_over(self, old: Person, to: Person) -> None:
        """Devices go along."""
        for device in old.has.devices.values():
            device.person = to
        to.own().devices.update(old.has.devices)

    def owners(self, kind: str) -> Owners:
        """Whose each token is."""
        return {(device.person.serial, token) for token, device in self.rows.items()}


# ======================================================================================
# ==== §9 Events, objects and segments
# ======================================================================================

MAX_EVENT_NAME = 100
MAX_EVENT_DATA = 100_000
MAX_OBJECT_ATTRIBUTES = 100_000
MAX_SEGMENT_IDS = 1000

#: What can happen beside an "event".
EVENT_TYPES = ("page", "screen", "viewed_content", "clicked_content")
#: How long an anonymous event can still be claimed, and a merge carries events over: 30 days.
EVENT_MEMORY = 30 * 86400.0
#: Anonymous events this many seconds after the identify are still picked up (docs).
ANONYMOUS_GRACE = 300.0


#: The fields of an event, by what its API calls the data.
EVENT_FIELDS = {
    data_key: LAX.having(
        "name", name=bytes_field(MAX_EVENT_NAME), id=SCALAR, any="type", number="timestamp",
        object=data_key, scalar="anonymous_id",
    )
    for data_key in ("data", "attributes")
}  # fmt: skip
_OBJECT_OR_NULL = (dict, type(None))


def event_of(kind: str, body: Json, data_key: str = "data", size: float = math.inf) -> Event:
    """The event that a body of `size` bytes describes. Raises ApiError 400 naming the field."""
    name, data, timestamp = body.get("name"), body.get(data_key), body.get("timestamp")
    plain = type(name) is str and 0 < len(name.strip()) * 4 <= MAX_EVENT_NAME
    if not plain or type(data) not in _OBJECT_OR_NULL:
        EVENT_FIELDS[data_key].read(body)
    # Written anew, JSON grows less than fivefold (1e15), so a small body need not be written.
    if size * 5 > MAX_EVENT_DATA and _longer(as_text(data), MAX_EVENT_DATA):
        raise invalid(f"{data_key} cannot be larger than {MAX_EVENT_DATA} bytes", data_key)
    type_ = body.get("type") if body.get("type") in EVENT_TYPES else "event"
    given_id = "" if body.get("id") in (None, "") else identifier_text(body["id"], "id")
    when = None if timestamp is None else whole_number(timestamp, "timestamp")
    return Event(kind or type_, name.strip(), data or {}, type_, when, given_id)


def doubt(event: Event) -> Outcome:
    """What is accepted, yet probably a mistake; DONE if nothing is."""
    if event.timestamp is not None and event.timestamp >= MILLISECONDS:
        text = f"timestamp {event.timestamp} looks like milliseconds; Customer.io takes seconds"
        return Outcome("partial", text)
    return DONE


Related = TypeVar("Related")


def relationship_list(
    value: Json, read: Callable[[Json, str], Related]
) -> List[Tuple[Related, Attributes]]:
    """`cio_relationships`: what `read` makes of the identifiers of each, and its attributes."""
    if not isinstance(value, (list, type(None))):
        raise invalid("cio_relationships must be a list", "cio_relationships")
    rows = []
    for i, row in enumerate(value or ()):
        name = f"cio_relationships[{i}]"
        if not isinstance(row, dict):
            raise invalid(f"{name} must be an object, not {kind_of(row)}", name)
        other = read(row.get("identifiers"), f"{name}.identifiers")
        rows.append((other, checked_attributes(row.get("relationship_attributes"), name)))
    return rows


def object_key(identifiers: Json, name: str, create: bool = True) -> ObjectKey:
    """`{object_type_id, object_id}`, or `{cio_object_id}` as ("", id). Raises ApiError 400."""
    if not isinstance(identifiers, dict):
        raise required(name, "object_type_id and object_id, or cio_object_id")
    if identifiers.get("cio_object_id"):
        return "", identifier_text(identifiers["cio_object_id"], f"{name}.cio_object_id")
    for part in ("object_type_id", "object_id"):
        if identifiers.get(part) in (None, ""):
            raise required(f"{name}.{part}", "object_type_id and object_id, or cio_object_id")
    type_id = object_type(identifiers["object_type_id"], f"{name}.object_type_id")
    return type_id, identifier_text(identifiers["object_id"], f"{name}.object_id")


def object_type(value: Json, name: str) -> str:
    """The id of an object type, a number as text (reference). Raises ApiError 400."""
    type_id = as_text(value)
    if not re.fullmatch(r"[1-9]\d{0,5}", type_id):
        raise invalid(f"{name} must be a number from 1 up", name)
    return type_id


@dataclass(eq=False, repr=False)
class Events(Keeper):
    """What happened, in order, and who an anonymous_id turned out to be."""

    people: People
    rows: List[Event] = kept(list)
    #: The ids that clients gave to events.
    ids: Set[str] = kept(set)
    anonymous: Dict[str, List[Event]] = kept(dict)
    claims: Dict[str, Tuple[Person, float]] = kept(dict)

    def track(self, who: Identifier, event: Event) -> Outcome:
        """Record an event of a person, who is created if unknown."""
        person = self.people.find(who)
        if person is None and (why := self.people.unnameable(who)) is not DONE:
            return why
        if self._seen(event):
            return DUPLICATE
        if person is None:
            person = self.people.add(who)
        event.customer_id = person.id or who[1]
        self.record(event)
        self._attach(event, person)
        return DONE

    def track_anonymous(self, who: Identifier, event: Event) -> Outcome:
        """Record an event of nobody yet; it moves to the person who gets its anonymous_id."""
        if self._seen(event):
            return DUPLICATE
        event.anonymous_id = who[1]
        self.record(event)
        person, when = self.claims.get(who[1], (None, 0.0))
        if person is not None and event.received_at - when <= ANONYMOUS_GRACE:
            event.customer_id = person.name
            self._attach(event, person)
        elif who[1]:
            self.anonymous.setdefault(who[1], []).append(event)
        return DONE

    def record(self, event: Event) -> None:
        """Keep an event, whoever it is of."""
        event.serial, event.received_at = len(self.rows), self.ground.clock.now()
        self.rows.append(event)

    def _seen(self, event: Event) -> bool:
        if not event.given_id:
            return False
        seen = event.given_id in self.ids
        self.ids.add(event.given_id)
        return seen

    def _attach(self, event: Event, person: Person) -> None:
        event.person = person
        person.own().events.append(event)
        self.ground.note(event.type, person, lambda: event.data, event.name)
        for tell in self.ground.occasions.happened:
            tell(event, person)

    def claim(self, person: Person, anonymous_id: str) -> None:
        """Give a person what was recorded under an anonymous_id in the last 30 days."""
        if anonymous_id in self.claims:
            return
        now = self.ground.clock.now()
        self.claims[anonymous_id] = (person, now)
        person.own().anonymous_ids.append(anonymous_id)
        self.ground.note("anon_merge", person, lambda: {"anonymous_id": anonymous_id})
        for event in self.anonymous.pop(anonymous_id, ()):
            if event.received_at >= now - EVENT_MEMORY:
                event.customer_id = person.name
                self._attach(event, person)

    def release(self, person: Person) -> None:
        """What happened stays, but shows no person."""
        for event in person.has.events:
            event.person = None
        for anonymous_id in person.has.anonymous_ids:
            del self.claims[anonymous_id]

    def carry_over(self, old: Person, to: Person) -> None:
        """What happened in the last 30 days goes along (reference)."""
        oldest, mine = self.ground.clock.now() - EVENT_MEMORY, to.own()
        for event in old.has.events:
            event.person = None
            if event.received_at >= oldest:
                event.person, event.customer_id = to, to.name
                mine.events.append(event)
        for anonymous_id in old.has.anonymous_ids:
            self.claims[anonymous_id] = (to, self.claims[anonymous_id][1])
        mine.anonymous_ids.extend(old.has.anonymous_ids)

    def owners(self, kind: str) -> Owners:
        """Whose events and anonymous_ids there are."""
        if kind == "anonymous_ids":
            return {(person.serial, key) for key, (person, _) in self.claims.items()}
        return {(event.person.serial, id(event)) for event in self.rows if event.person}


@dataclass(eq=False, repr=False)
class Objects(Keeper):
    """Anything that isn't a person, and who is related to it."""

    people: People
    events: Events
    rows: Dict[ObjectKey, Thing] = kept(dict)
    ids: Dict[str, ObjectKey] = kept(dict)
    anonymous: Dict[str, Dict[ObjectKey, Attributes]] = kept(dict)

    def find(self, ref: ObjectKey) -> Optional[Thing]:
        """An object by type and id, or by ("", cio_object_id)."""
        key = self.ids.get(ref[1]) if ref[0] == "" else ref
        return None if key is None else self.rows.get(key)

    def identify_object(self, who: Identifier, ref: ObjectKey, attributes: Attributes) -> Outcome:
        """Create or update an object; one named by cio_object_id must exist."""
        now = self.ground.seconds()
        thing = self.find(ref)
        if thing is None:
            if ref[0] == "":
                return NO_OBJECT
            thing = self._create_object(ref, now)
        old = thing.attributes
        thing.attributes, thing.timestamps = changed(old, thing.timestamps, attributes, now)
        if thing.attributes is not old:
            told = functools.partial(difference, old, thing.attributes)
            self.ground.note(f"_o:{thing.key[0]}:attribute_change", None, told)
            for tell in self.ground.occasions.thing:
                tell(thing, old)
        thing.updated_at = now
        return DONE

    def _create_object(self, key: ObjectKey, now: int) -> Thing:
        number = self.ground.count(f"object type {key[0]}")
        thing = self.rows[key] = Thing(key, cio_object_id_of(key[0], number), now)
        self.ids[thing.cio_object_id] = key
        self.ground.note(f"_o:{key[0]}:create", None, lambda: {"object_id": key[1]})
        return thing

    def delete_object(self, who: Identifier, ref: ObjectKey) -> Outcome:
        """Remove an object and all its relationships."""
        thing = self.find(ref)
        if thing is None:
            return NO_OBJECT
        for person in thing.people.values():
            del person.has.relationships[thing.key]
        for relationships in self.anonymous.values():
            relationships.pop(thing.key, None)
        del self.rows[thing.key], self.ids[thing.cio_object_id]
        self.ground.note(f"_o:{thing.key[0]}:delete", None, lambda: {"object_id": thing.key[1]})
        return DONE

    def add_relationship(self, who: Identifier, ref: ObjectKey, attributes: Attributes) -> Outcome:
        """Relate a person (or an anonymous_id) to an object, which is made if unknown."""
        thing = self.find(ref)
        if thing is None and ref[0] == "":
            return NO_OBJECT
        if thing is None:
            thing = self._create_object(ref, self.ground.seconds())
        if who[0] == "anonymous_id" and who[1] not in self.events.claims:
            known = self.anonymous.setdefault(who[1], {})
            known[thing.key] = {**known.get(thing.key, {}), **attributes}
            return DONE
        claimed = who[0] == "anonymous_id"
        person = self.events.claims[who[1]][0] if claimed else self.people.find(who)
        if person is None:
            return NO_PERSON
        self._relate(person, thing.key, attributes)
        return DONE

    def _relate(self, person: Person, key: ObjectKey, attributes: Attributes) -> None:
        """Relate a person to an object, or update the attributes of their relationship."""
        related = person.own().relationships
        known, old = key in related, related.get(key, {})
        related[key] = changed(old, {}, attributes, 0)[0]
        self.rows[key].people[person.serial] = person
        if not known:
            self._note_of_both("add_relationship", person, key)
            self._tell(person, key, "add")
        elif related[key] is not old:
            told = functools.partial(difference, old, related[key])
            self.ground.note("relationship_attribute_change", person, told)
            self.ground.note(f"_r:{key[0]}:attribute_change", None, told)
            self._tell(person, key, "update")

    def _tell(self, person: Person, key: ObjectKey, change: str) -> None:
        for tell in self.ground.occasions.related:
            tell(person, key, change)

    def _note_of_both(self, type: str, person: Person, key: ObjectKey) -> None:
        """Write down what happened between a person and an object, in the log of each."""
        about = {"object_type_id": key[0], "object_id": key[1]}
        self.ground.note(type, person, lambda: about)
        self.ground.note(f"_o:{key[0]}:{type}", None, lambda: {"object_id": key[1]})

    def delete_relationship(self, who: Identifier, ref: ObjectKey) -> Outcome:
        """Part a person from an object."""
        person, thing = self.people.find(who), self.find(ref)
        if person is None or thing is None or thing.key not in person.has.relationships:
            return NOT_RELATED
        del person.has.relationships[thing.key], thing.people[person.serial]
        self._note_of_both("delete_relationship", person, thing.key)
        self._tell(person, thing.key, "delete")
        return DONE

    def claim(self, person: Person, anonymous_id: str) -> None:
        """Relate a person to what was related to an anonymous_id."""
        for key, attributes in self.anonymous.pop(anonymous_id, {}).items():
            if key in self.rows:
                self._relate(person, key, attributes)

    def release(self, person: Person) -> None:
        """The objects stay, without the person."""
        for key in person.has.relationships:
            del self.rows[key].people[person.serial]

    def carry_over(self, old: Person, to: Person) -> None:
        """Relationships go along; where both have one, the attributes of `to` stay."""
        for key, attributes in old.has.relationships.items():
            del self.rows[key].people[old.serial]
            self._relate(to, key, {**attributes, **to.has.relationships.get(key, {})})

    def owners(self, kind: str) -> Owners:
        """Who is related to which object."""
        return {(serial, key) for key, thing in self.rows.items() for serial in thing.people}


def _passed_over(count: int) -> Outcome:
    text = f"passed over: {count} of the ids name nobody here"
    return Outcome("partial", text) if count else DONE


def _member_in(segments: Segments, person: Person, number: int) -> bool:
    return segments.is_member(person, number)


@dataclass(eq=False, repr=False)
class Segments(Keeper):
    """Groups of people: who is in which."""

    people: People
    objects: Objects
    rows: Dict[int, Segment] = kept(dict)
    #: How watched attributes changed, by person's serial number and name: when, from, to.
    changes: Dict[Tuple[int, str], List[Tuple[float, Any, Any]]] = kept(dict)

    def __post_init__(self) -> None:
        """Nobody asks for a segment, or for changes, yet."""
        self._asked: Set[int] = set()
        self._watched: Set[str] = set()

    def compile(self, spec: Json, where: str) -> Predicate:
        """A segment's conditions as a predicate, which does not keep this alive.

        Raises ApiError 400 with the path of the part that is wrong.
        """
        return compile_conditions(spec, where, self.grammar()).test

    def grammar(self) -> Grammar:
        """What can be asked of people here, in words that don't keep the workspace alive."""
        me = weakref.proxy(self)
        member = functools.partial(_member_in, me)
        return Grammar(PERSON_CONDITIONS, member, set(), [], me)

    @property
    def clock(self) -> Clock:
        """What conditions about time go by."""
        return self.ground.clock

    def watch(self, name: str) -> None:
        """Keep from now on how an attribute changes."""
        if not self._watched:
            self.ground.occasions.join(changed=self._keep_changes)
        self._watched.add(name)

    def _keep_changes(self, person: Person, old: Attributes) -> None:
        for name in self._watched:
            before, after = old.get(name), person.attributes.get(name)
            if before != after:
                row = (self.clock.now(), before, after)
                self.changes.setdefault((person.serial, name), []).append(row)

    def is_member(self, person: Person, number: int) -> bool:
        """Whether a person is in a segment, now."""
        segment = self.rows.get(number)
        if segment is None or segment.predicate is None:
            return number in person.has.segments
        if number in self._asked:  # a segment that asks for itself has nobody
            return False
        self._asked.add(number)
        try:
            return segment.predicate(person)
        finally:
            self._asked.discard(number)

    def people_in(self, segment: Segment) -> List[Person]:
        """Everybody in a segment, oldest first."""
        if segment.predicate is None:
            return list(segment.members.values())
        self._asked.add(segment.number)  # once, not for each person: it takes half the time
        try:
            return list(filter(segment.predicate, self.people))
        finally:
            self._asked.discard(segment.number)

    def add_to_segment(self, who: Identifier, number: int, people: List[Identifier]) -> Outcome:
        """Add people to a manual segment; the unknown are passed over (reference)."""
        if number not in self.rows:  # made in the web app, which we can't see
            self.rows[number] = Segment(number, f"Segment {number}", self.ground.seconds())
        found = list(filter(None, map(self.people.find, people)))
        for person in found:
            self._join(person, number)
        return _passed_over(len(people) - len(found))

    def remove_from_segment(
        self, who: Identifier, number: int, people: List[Identifier]
    ) -> Outcome:
        """Take people out of a manual segment; strangers and non-members are passed over."""
        found = [p for p in map(self.people.find, people) if p and number in p.has.segments]
        for person in found:
            person.has.segments.discard(number)
            self.rows[number].members.pop(person.serial, None)
            for tell in self.ground.occasions.left:
                tell(person, number)
        return _passed_over(len(people) - len(found))

    def _join(self, person: Person, number: int) -> None:
        if number in person.has.segments:
            return
        person.own().segments.add(number)
        self.rows[number].members[person.serial] = person
        for tell in self.ground.occasions.joined:
            tell(person, number)

    def release(self, person: Person) -> None:
        """Manual segments lose their member."""
        for name in self._watched:
            self.changes.pop((person.serial, name), None)
        for number in person.has.segments:
            del self.rows[number].members[person.serial]

    def carry_over(self, old: Person, to: Person) -> None:
        """Who takes a person's place is in their manual segments."""
        for number in old.has.segments:
            del self.rows[number].members[old.serial]
            self._join(to, number)

    def owners(self, kind: str) -> Owners:
        """Who is in which manual segment."""
        rows = self.rows.items()
        return {(serial, number) for number, row in rows for serial in row.members}


# ======================================================================================
# ==== §10 Deliveries
# ======================================================================================


#: What happened to a message last, by metric: when, metrics and history before it, and after.
_LAST_STEPS: Dict[str, Tuple[int, Json, Json, Json, Json]] = {}


def _let_pass_alike(delivery: Delivery, metric: str, when: int) -> None:
    """Note what happens to most messages; those of the same second share it."""
    last, metrics, history = _LAST_STEPS.get(metric), delivery.metrics, delivery.history
    if last and last[0] == when and last[1] is metrics and last[2] is history:
        delivery.metrics, delivery.history = last[3:]
    else:
        _let_pass(delivery, {"metric": metric, "timestamp": when})
        after = delivery.metrics, delivery.history
        _LAST_STEPS[metric] = (when, metrics, history, *after)


def _let_pass(delivery: Delivery, row: Json) -> None:
    """Add a row to the history of a message; the first time of each metric counts."""
    metric, when = row["metric"], row["timestamp"]
    passed = {metric: when}
    if metric in ("opened", "clicked"):  # nothing here opens mail but people
        passed = {f"human_{metric}": when, **passed}
    if metric == "clicked" and row.get("link_id"):  # (observed)
        passed = {f"link:{row['link_id']}": when, **passed}
    delivery.metrics = {**passed, **delivery.metrics}
    fact = {name: value for name, value in row.items() if value not in (None, "")}
    delivery.history = [*delivery.history, fact]


@functools.lru_cache(maxsize=256)
def activity_type(metric: str, channel: str) -> str:
    """What the activity is called that tells of a metric."""
    return f"{metric}_{MESSAGE_TYPES.get(channel, channel)}"


@dataclass(eq=False, repr=False)
class Deliveries(Keeper):
    """Messages to people, what they are part of, and what became of them."""

    people: People
    devices: Devices
    events: Events
    rows: Dict[str, Delivery] = kept(dict)
    #: Deliveries by what they are part of: ("campaign_id", 1).
    sent: Dict[Tuple[str, int], List[Delivery]] = kept(dict)
    #: Numbers of tracked links.
    links: Dict[str, int] = kept(dict)
    #: Addresses on the lists of the email provider, by kind of list and lower-case address.
    esp: Dict[str, Dict[str, Annotated[Attributes, SUPPRESSION]]] = kept(dict)
    #: How many are not kept any more.
    dropped: int = kept(int)

    def post(self, delivery: Delivery) -> None:
        """File a new delivery under everything that it is part of."""
        self.rows[delivery.delivery_id] = delivery
        for parent in delivery.parents.items():
            self.sent.setdefault(parent, []).append(delivery)
        if delivery.person is not None:
            delivery.person.own().deliveries.append(delivery)
        if len(self.rows) > self.ground.settings.deliveries:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Forget the oldest, some at once, because each time all lists are gone through."""
        most = self.ground.settings.deliveries
        old = set(islice(self.rows.values(), len(self.rows) - most + most // 64))
        self.dropped += len(old)
        for delivery in old:
            del self.rows[delivery.delivery_id]
        for parent in {parent for delivery in old for parent in delivery.parents.items()}:
            self.sent[parent] = [one for one in self.sent.get(parent, ()) if one not in old]
        for person in {delivery.person for delivery in old}:
            if person is not None and person.has is not _NOTHING:
                person.has.deliveries = [one for one in person.has.deliveries if one not in old]

    def forget(self, delivery_id: str) -> None:
        """Take a delivery out of all lists and counts."""
        delivery = self.rows.pop(delivery_id)
        person = delivery.person
        lists = [self.sent.get(parent, []) for parent in delivery.parents.items()]
        for deliveries in [*lists, person.has.deliveries if person else []]:
            with contextlib.suppress(ValueError):
                deliveries.remove(delivery)

    def report(
        self, delivery: Delivery, metric: str, when: int, reason: str = "", **more: Json
    ) -> None:
        """Note that something happened to a delivery at `when`, Unix seconds."""
        first, ground = metric not in delivery.metrics, self.ground
        pushed = delivery.channel == "push"
        if metric == "sent" and pushed:
            delivery.devices = delivery.addressed()
            delivery.recipient = ", ".join(delivery.devices) or delivery.recipient
        if reason or more:
            _let_pass(delivery, {"metric": metric, "timestamp": when, "reason": reason, **more})
        else:
            _let_pass_alike(delivery, metric, when)
        fact = delivery.history[-1]
        for tell in ground.occasions.reported:
            tell(delivery, metric, when, first, fact)
        if pushed and metric in _DEVICE_STATUS:
            named = device_named_by(fact)
            for token in [named] if named else delivery.addressed():
                self.devices.mark(token, metric, fact.get("reason"))
        type = activity_type(metric, delivery.channel)
        ground.note(type, delivery.person, dict, "", delivery)

    def book(self, delivery: Delivery, metric: str, when: int, **more: Json) -> None:
        """Note what somebody reports of a delivery, and what follows from it."""
        if metric == "clicked":
            more = {**response_named_by(more), **more, **self._clicked_link(delivery, more)}
            # Who clicks in an email has it open (reference).
            if delivery.channel == "email" and "opened" not in delivery.metrics:
                self.report(delivery, "opened", when, synthetic=True)
        self.report(delivery, metric, when, **more)
        if delivery.channel == "email" and metric in SUPPRESSING:
            reason = as_text(more.get("reason") or metric)
            for _, address in getaddresses([as_text(more.get("recipient") or delivery.recipient)]):
                self.suppress_address(SUPPRESSING[metric], address, reason, when)

    def suppress_address(self, type: str, email: str, reason: str, when: int) -> None:
        """Put an address on a list of the email provider, as of `when`, Unix seconds."""
        row = {"created": when, "email": email, "reason": reason, "status": "550"}
        self.esp.setdefault(type, {})[email.lower()] = row

    def _clicked_link(self, delivery: Delivery, fact: Json) -> Json:
        """The `href` and `link_id` of a click; the first link of the message if it names none."""
        href, number = as_text(fact.get("href") or ""), fact.get("link_id")
        known = [row for row in delivery.tracked_links() if number in (None, row["id"])]
        if not href and known:
            href = known[0]["href"]
        return {"href": href, "link_id": number or self.link_number(href)} if href else {}

    def link_number(self, href: str) -> int:
        """The number of a tracked link."""
        return self.links.setdefault(href, len(self.links) + 1)

    def record_metric(
        self,
        who: Identifier,
        metric: str,
        when: Optional[int],
        reason: str = "",
        more: Optional[Attributes] = None,
    ) -> Outcome:
        """Book on a delivery that `metric` happened to it, at `when` (Unix seconds) or now."""
        delivery = self.rows.get(who[1])
        if delivery is None:
            return NO_DELIVERY
        if metric not in CHANNEL_METRICS.get(delivery.channel, METRICS):
            text = f"impossible metric: nothing sent by {delivery.channel} can be {metric}"
            return Outcome("unknown", text)
        when = self.ground.seconds() if when is None else when
        self.book(delivery, metric, when, reason=reason, **(more or {}))
        return DONE

    def unsubscribe(self, who: Identifier, delivery_id: str) -> Outcome:
        """Unsubscribe the person whom a delivery went to, and book that on the delivery."""
        delivery = self.rows[delivery_id]
        now = self.ground.seconds()
        self.report(delivery, "unsubscribed", now)
        if delivery.person is None:
            return NO_PERSON
        self.people.update(delivery.person, {"unsubscribed": True}, now, cause=delivery)
        return DONE

    def resubscribe(self, who: Identifier, delivery_id: str) -> Outcome:
        """Take an unsubscribe back (as the Node client describes `unsubscribe: false`)."""
        delivery = self.rows[delivery_id]
        if delivery.person is None:
            return NO_PERSON
        now = self.ground.seconds()
        self.people.update(delivery.person, {"unsubscribed": False}, now, cause=delivery)
        return DONE

    def record_push(self, who: Identifier, event: Event) -> Outcome:
        """Record what a device reported of a push, and book it on the delivery."""
        self.events.record(event)
        more = {"device_id": event.data.get("device_id")}
        return self.record_metric(who, event.name, event.timestamp, more=more)

    def release(self, person: Person) -> None:
        """What was sent stays, but shows no person."""
        for delivery in person.has.deliveries:
            delivery.person = None

    def carry_over(self, old: Person, to: Person) -> None:
        """What was sent to one person counts for the other."""
        for delivery in old.has.deliveries:
            delivery.person, delivery.customer_id = to, to.name
        to.own().deliveries.extend(old.has.deliveries)

    def owners(self, kind: str) -> Owners:
        """Whom each message went to."""
        rows = self.rows.items()
        return {(row.person.serial, key) for key, row in rows if row.person is not None}


@dataclass(eq=False, repr=False)
class Journeys(Keeper):
    """What people go through in campaigns, and who matches those that segments begin."""

    people: People
    rows: List[Journey] = kept(list)
    #: Who matches, by the campaign's number and the person's serial number.
    matching: Dict[int, Set[int]] = kept(dict)
    #: What is set for all campaigns together: the message limit and the seed of chance.
    settings: Attributes = kept(dict)

    def release(self, person: Person) -> None:
        """Whoever is deleted goes through nothing any more."""
        for journey in person.has.journeys:
            if journey.state == "active":
                self._end(journey, "person deleted")
            journey.person = None

    def carry_over(self, old: Person, to: Person) -> None:
        """Journeys that the other one has never entered go on, the rest is history (reference)."""
        mine = to.own().journeys
        entered = {journey.campaign_id for journey in mine}
        for journey in old.has.journeys:
            if journey.state == "active" and journey.campaign_id in entered:
                self._end(journey, "person merged")
            journey.person, journey.customer_id = to, to.name
        mine.extend(old.has.journeys)

    def _end(self, journey: Journey, reason: str) -> None:
        now, state = self.ground.clock.now(), "exited_early"
        state = state if journey.activated is not None else "never_activated"
        journey.end(now, state, reason, journey.waiting_for)

    def owners(self, kind: str) -> Owners:
        """Whose each journey is."""
        return {(row.person.serial, id(row)) for row in self.rows if row.person is not None}


# ======================================================================================
# ==== §11 Workspace
# ======================================================================================

#: How many reporting webhooks are kept; older ones are forgotten.
MAX_REPORTS = 10_000
#: Up to this many messages are sent before the call that asked for them is answered.
FOREGROUND = 200
#: How long due work may hold up a hurried thread, and others, in seconds.
SLICE, PATIENCE = 0.003, 5.0
_DUE_WORK = "customerio-fake-due-work"


#: What can wait for its time on a workspace's clock, by name.
CHORES: Dict[str, Callable[..., Any]] = {}
SomeChore = TypeVar("SomeChore", bound=Callable[..., Any])


def chore(function: SomeChore) -> SomeChore:
    """Let a function, which takes a workspace first, be done `later`."""
    CHORES[function.__name__] = function
    return function


@chore
def apply_late(workspace: Workspace, verb: str, who: Identifier, args: Sequence[Any]) -> None:
    """Apply a Track write that the workspace has lagged behind with."""
    part, name = verbs()[verb][0], verb
    workspace.apply(getattr(workspace.parts[part], name), who, args)


class News:
    """Wakes whoever waits for something to be recorded."""

    def __init__(self, lock: threading.RLock) -> None:
        self._condition = threading.Condition(lock)
        #: How many wait, and how often there was news.
        self.waiting = self.told = 0

    def tell(self) -> None:
        """Wake whoever waits for something to be recorded."""
        with self._condition:
            self.told += 1
            self._condition.notify_all()

    def wait_until(
        self, ready: Callable[[], bool], timeout: float, asked: Callable[[], bool] = lambda: True
    ) -> bool:
        """Wait, at most `timeout` seconds, until something is so; returns whether it is.

        It is looked at when there is news, and however much there is, for a fifth of the time at
        most, among all who wait. Ends when nobody has `asked` any more.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            self.waiting += 1
        try:
            while True:
                seen, began = self.told, time.monotonic()
                done, now = ready(), time.monotonic()
                if done or now >= deadline:
                    return done
                time.sleep(min(4 * (now - began) * self.waiting, deadline - now))
                if not self._news_since(seen, deadline, asked):
                    return ready()
        finally:
            with self._condition:
                self.waiting -= 1

    def _news_since(self, seen: int, deadline: float, asked: Callable[[], bool]) -> bool:
        """Wait for news; False if time is up before, or nobody has asked any more."""
        with self._condition:
            while self.told == seen:
                left = deadline - time.monotonic()
                # In slices, because a client that goes away does not wake us.
                if left <= 0 or not asked():
                    return False
                self._condition.wait(min(left, 1))
        return True


class Agenda:
    """What is done later, at its time on the clock, and what is done in the background."""

    def __init__(self, clock: Clock, news: News, do: Callable[[Chore], None]) -> None:
        self.clock, self.news, self._do = clock, news, do
        #: Work in the background; it ends once this is closed.
        self.jobs: List[threading.Thread] = []
        self.closed = False
        #: Held by who does what is due: one thing after another.
        self.turn, self._busy = threading.RLock(), False

    def open(self) -> None:
        """Let things run in the background again."""
        self.closed = False

    def close(self) -> None:
        """End what runs in the background, and wake whoever waits."""
        self.closed = True
        self.news.tell()
        for job in self.jobs:
            job.join()
        self.jobs.clear()

    def tick(self) -> bool:
        """Do what has become due since somebody last looked; whether any of it is left.

        A hurried thread does a little of it, others what can be done in PATIENCE seconds; a
        thread in the background does the rest.
        """
        if not self._busy and not (self.clock.queue and self.clock.has_due()):
            return False
        at_it = any(job.name == _DUE_WORK and job.is_alive() for job in self.jobs)
        if threading.get_ident() in HURRIED:
            done = not at_it and self._work(0)
        else:
            done = self._work_through(PATIENCE)
        if not (done or at_it):
            self._in_background(_DUE_WORK, self._work_through)
        return not done

    def _work_through(self, seconds: float = math.inf) -> bool:
        """Do what is due, at most for so long; whether all is done."""
        end = time.monotonic() + seconds
        while not self._work(SLICE):
            if time.monotonic() > end or self.closed:
                return False
            time.sleep(SLICE / 10)  # so that others get at the interpreter
        return True

    def _work(self, patience: float) -> bool:
        """Do what is due, oldest first, for the time of a slice; whether all is done.

        Who is at it already is waited for with `patience`, in seconds. Each piece of work takes
        the workspace's lock itself, where it needs it.
        """
        if not self.turn.acquire(timeout=patience):
            return False
        try:
            end = time.monotonic() + SLICE
            while not self._busy and (due := self.clock.take_due()):
                self._do_now(due)
                if time.monotonic() > end:
                    return not self.clock.has_due()
            return True
        except TakesTime:
            return False
        finally:
            self.turn.release()

    def _do_now(self, due: Due) -> None:
        """Do one thing that is due. Raises TakesTime, with that thing on the queue again."""
        self._busy = True
        try:
            self._do(due[2])
        except TakesTime:
            self.clock.put_back(due)
            raise
        finally:
            self._busy = False
            if self.news.waiting:
                self.news.tell()

    def later(self, when: float, chore: Callable[..., Any], *args: Any) -> None:
        """Have one of the CHORES done, with the workspace and `args`, at `when`, Unix seconds."""
        self.clock.at(when, Chore(chore.__name__, args))

    def advance(self, seconds: float, settle: Callable[[], Any] = lambda: None) -> None:
        """Move the clock forward by `seconds`, and do at its time what becomes due meanwhile.

        After each moment `settle` may wait for what that set off.
        """
        clock = self.clock
        target, frozen, more = clock.now() + seconds, clock.frozen, True
        while more:
            with self.turn:
                more = clock.advancing = clock.step(target, frozen)
                try:
                    self._work_through()
                finally:
                    clock.advancing = False
            settle()

    def run_for_all(
        self,
        things: Sequence[Any],
        action: Callable[[int, Any], None],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """Do something for each thing, then `finish`; many are done in the background."""

        def run() -> None:
            for position, thing in enumerate(things):
                if self.closed:
                    return
                try:
                    action(position, thing)
                except Exception as error:  # the others get theirs
                    log.error("a message could not be sent: %r", error)
            finish()
            self.news.tell()

        if len(things) <= FOREGROUND or self.clock.advancing:
            run()
        else:
            self._in_background("customerio-fake-sending", run)

    def _in_background(self, name: str, work: Callable[[], Any]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self.jobs = [job for job in self.jobs if job.is_alive()] + [thread]
        thread.start()


#: The parts of a workspace that keep something, by name.
PARTS: Dict[str, Any] = {
    "ground": Ground, "people": People, "devices": Devices, "events": Events,
    "objects": Objects, "segments": Segments, "deliveries": Deliveries, "journeys": Journeys,
}  # fmt: skip
#: What a person owns, by its name in their Belongings, and which part of a workspace keeps it. From
#: this follow deletion and merge (see Keeper), and the soundness of snapshots.
OWNED = {
    "events": "events", "anonymous_ids": "events", "deliveries": "deliveries",
    "devices": "devices", "segments": "segments", "relationships": "objects",
    "journeys": "journeys",
}  # fmt: skip


Something = TypeVar("Something")


@dataclass(eq=False, repr=False)
class Workspace:
    """All that was recorded: the holder of its parts, its lock, and its one way in for writes.

    A reset is a new Workspace. Verbs that the Track API queues are called through `ingest`; other
    callers hold `lock` around what they do.
    """

    settings: Settings
    batches: List[Batch] = kept(list)
    pipeline_events: List[Attributes] = kept(list)
    dropped: List[Attributes] = kept(list)
    #: Reporting webhooks, with their attempts.
    reports: Deque[Report] = kept(lambda: deque(maxlen=MAX_REPORTS))
    #: What is still to be reported to whom, and who gets nothing until the next try.
    unreported: Dict[int, Deque[Report]] = kept(dict)
    resting: Set[int] = kept(set)
    broadcasts: List[Annotated[Attributes, TRIGGER]] = kept(list)
    exports: Dict[int, Export] = kept(dict)
    forms: Dict[str, List[Attributes]] = kept(dict)
    #: Senders that people don't want to hear from: channel and sender, by serial number.
    optouts: Dict[int, Tuple[Tuple[str, str], ...]] = kept(dict)
    #: What was said about attributes and events, by name.
    index: Dict[str, Dict[str, Annotated[Attributes, INDEXED]]] = kept(dict)
    ip_addresses: List[str] = kept(list)
    #: When calls that have a rate limit were made, by limit.
    calls: Dict[str, Deque[float]] = kept(dict)
    shelves: Dict[str, Shelf] = kept(lambda: {k: Shelf(k, k in OPEN_SHELVES) for k in SHELVES})
    #: Signs download links.
    secret: bytes = kept(lambda: os.urandom(16))

    def __post_init__(self) -> None:
        """Put the parts together; each knows only those before it."""
        self.lock = threading.RLock()
        #: What nobody has wanted a report of yet, oldest first; all of it is later than `reports`.
        self.notes: Deque[Note] = deque(maxlen=MAX_REPORTS)
        ground = self.ground = Ground(self.settings)
        self.clock, self.occasions = ground.clock, ground.occasions
        self.count, self.seconds, self.note = ground.count, ground.seconds, ground.note
        people = self.people = People(ground)
        self.devices = Devices(ground, people)
        self.events = Events(ground, people)
        self.objects = Objects(ground, people, self.events)
        self.segments = Segments(ground, people, self.objects)
        self.deliveries = Deliveries(ground, people, self.devices, self.events)
        self.journeys = Journeys(ground, people)
        #: Where links inside of messages lead that no request has brought about.
        self.address: Callable[[], str] = str
        self._beside: Dict[Any, Any] = {}
        people.keepers = tuple(getattr(self, part) for part in dict.fromkeys(OWNED.values()))
        self.news = News(self.lock)
        me = weakref.ref(self)  # so that a reset frees it at once
        self.agenda = Agenda(self.clock, self.news, lambda chore: _do(me(), chore))

    def __del__(self) -> None:
        """Part what points at each other, so that it is freed at once: the GC may come late."""
        self.occasions.forget()
        self.people.keepers = ()
        for event in self.events.rows:
            event.person = None
        for delivery in self.deliveries.rows.values():
            delivery.person = None
        for journey in self.journeys.rows:
            journey.person, journey.steps = None, []
        for person in self.people:
            person.has = _NOTHING

    def beside(self, kind: Callable[[Workspace], Something]) -> Something:
        """The one helper of a kind that works with this workspace, made on first use."""
        if kind not in self._beside:
            self._beside[kind] = kind(weakref.proxy(self))
        return cast(Something, self._beside[kind])

    @property
    def parts(self) -> Dict[str, Any]:
        """The parts that keep something, by name."""
        return {name: getattr(self, name) for name in PARTS}

    def ingest(self, verb: Callable[..., Outcome], who: Identifier, *args: Any) -> Outcome:
        """Apply a Track write now, or later if the workspace is set to lag behind.

        Returns why the real service would have dropped it without a word, or DONE.
        """
        if not self.settings.ingest_delay:
            return self.apply(verb, who, args)
        due = self.clock.now() + self.settings.ingest_delay
        self.agenda.later(due, apply_late, verb.__name__, who, args)
        return DONE

    def apply(self, verb: Callable[..., Outcome], who: Identifier, args: Sequence[Any]) -> Outcome:
        """Apply a Track write, unless its person is suppressed; gives why nothing happened."""
        with self.lock:
            blocked = self.people.blocked
            if blocked and _folded(who) in blocked and verb.__name__ != "unsuppress":
                outcome = SUPPRESSED
                for tell in self.occasions.refused:
                    tell(who, args)
            else:
                outcome = verb(who, *args)
            if outcome is not DONE:
                self.drop(verb.__name__, who, outcome.text)
            for tell in self.occasions.settled:
                tell()
        return outcome

    def keep_batch(self, source: str, operations: List[Json]) -> None:
        """Record a batch call, by what its API is called. Under the lock."""
        number, text = len(self.batches) + 1, compact(operations)
        self.batches.append(Batch(number, source, text, self.seconds()))

    def drop(self, operation: str, who: Identifier, reason: str) -> None:
        """Record a call that was answered with 200 and had no, or not its full, effect."""
        log.warning("dropped: %s of %s %r: %s", operation, *who, reason)
        moment = self.seconds()
        row = {"operation": operation, "identifier": who[0], "customer_id": who[1]}
        self.dropped.append({**row, "reason": reason, "received_at": moment})


def _do(workspace: Optional[Workspace], chore: Chore) -> None:
    """Do what has become due; a failure is told and goes no further. Raises TakesTime."""
    try:
        CHORES[chore.name](workspace, *chore.args)
    except TakesTime:
        raise
    except Exception as error:
        log.error("%s failed when it was due: %r", chore.name, error)


@functools.cache
def verbs() -> Dict[str, Tuple[str, Callable[..., Outcome]]]:
    """The writes of Track by name: which part of a workspace does each, and how.

    They are what `ingest` takes: they say first who they are about.
    """
    found: Dict[str, Tuple[str, Callable[..., Outcome]]] = {}
    for part, kind in PARTS.items():
        for name, verb in inspect.getmembers(kind, inspect.isfunction):
            if list(inspect.signature(verb).parameters)[1:2] == ["who"] and name[0] != "_":
                found.setdefault(name, (part, verb))
    return found


# ======================================================================================
# ==== §12 Rendering
# ======================================================================================


# ---- campaigns and their like


class Family(NamedTuple):
    """Campaigns, broadcasts, newsletters, transactional messages: alike in what hangs on them."""

    #: Shelf and path.
    kind: str
    #: What an answer calls one and many of them.
    one: str
    many: str
    #: What a delivery calls the one it is part of.
    key: str
    #: The contents (actions): shelf, path and list, one in an answer, and in a delivery.
    shelf: str
    contents: str
    content: str
    content_key: str


CAMPAIGNS = Family(
    "campaigns", "campaign", "campaigns", "campaign_id",
    "campaign_actions", "actions", "action", "action_id",
)  # fmt: skip
BROADCASTS = Family(
    "broadcasts", "broadcast", "broadcasts", "broadcast_id",
    "broadcast_actions", "actions", "action", "action_id",
)  # fmt: skip
NEWSLETTERS = Family(
    "newsletters", "newsletter", "newsletters", "newsletter_id",
    "newsletter_contents", "contents", "content", "content_id",
)  # fmt: skip
TRANSACTIONAL = Family(
    "transactional", "message", "messages", "transactional_message_id",
    "transactional_contents", "contents", "content", "content_id",
)  # fmt: skip
FAMILIES = {family.kind: family for family in (CAMPAIGNS, BROADCASTS, NEWSLETTERS, TRANSACTIONAL)}

#: What a row has that nobody described.
BLANKS: Dict[str, Json] = {
    "campaigns": {"type": "segment", "active": True, "state": "running", "tags": []},
    "broadcasts": {
        "type": "triggered_broadcast", "active": True, "state": "running", "tags": [],
    },
    "newsletters": {"type": "email", "sent_at": None, "tags": [], "recipient_segment_ids": []},
    "transactional": {
        "description": "", "send_to_unsubscribed": True, "link_tracking": True,
        "open_tracking": True, "hide_message_body": False, "queue_drafts": False,
    },
    "content": {
        "type": "email", "name": "", "language": "", "layout": "", "body": "", "body_amp": "",
        "subject": "", "from": "", "from_id": 0, "reply_to": "", "reply_to_id": None,
        "preprocessor": "premailer", "recipient": "{{customer.email}}", "bcc": "", "cc": "",
        "fake_bcc": True, "preheader_text": "", "headers": "[]",
    },
}  # fmt: skip


def blank_row(workspace: Workspace, kind: str, name: str = "") -> Json:
    """A new row of a family, made now."""
    now = workspace.seconds()
    ends = ("created_at", "updated_at") if kind == "transactional" else ("created", "updated")
    return {"name": name, **BLANKS[kind], **dict.fromkeys(ends, now)}


def blank_content(workspace: Workspace, family: Family) -> Json:
    """A new content (or action) of a family, made now."""
    blank = {**BLANKS["content"], **dict.fromkeys(("created", "updated"), workspace.seconds())}
    if family.content == "action":
        blank.update(sending_state="automatic", parent_action_id=0)
    return blank


def add_content(
    workspace: Workspace, family: Family, parent: int, content: Json, kept: bool = True
) -> Json:
    """A content (or action) of a campaign, newsletter, …; its number may be given."""
    row = {**blank_content(workspace, family), **content, "_parent": parent}
    return workspace.shelves[family.shelf].add(row, content.get("id"), kept)


def shown(row: Json) -> Json:
    """A row without what is ours alone: names that begin with an underscore."""
    return {name: value for name, value in row.items() if not name.startswith("_")}


# ---- signed links


def link_signature(workspace: Workspace, number: int, expires: int) -> str:
    """What makes a download link valid until `expires`, Unix seconds."""
    text = f"{number}:{expires}".encode()
    return hmac.new(workspace.secret, text, "sha256").hexdigest()


#: How long a subscription center token works: 24 hours (reference).
TOKEN_LIFE = 86400


def subscription_token(workspace: Workspace, person: Person) -> str:
    """What lets a person into the subscription center."""
    expires = workspace.seconds() + TOKEN_LIFE
    return f"{person.serial}.{expires}.{link_signature(workspace, person.serial, expires)}"


def subscription_path(workspace: Workspace, person: Person) -> str:
    """The path of a person's subscription center."""
    return f"/u/i/{subscription_token(workspace, person)}/"


# ---- what the recipient sees


class Mail(NamedTuple):
    """What is to be sent: a content of a campaign, newsletter, … with all overrides."""

    family: Family
    parent: Attributes
    content: Attributes
    #: What its templates can name: see NAMESPACES.
    names: Tuple[str, ...] = ("customer", "trigger", "campaign", "message", "snippets",
                              "delivery_id")  # fmt: skip


#: The parts of a message that are templates: by what name they are given (an override first),
#: and what they are called once rendered. "Title" and "message" are those of a push.
_RENDERED_PARTS = (
    ("subject", ("title", "subject")),
    ("body", ("message", "body")),
    ("body_plain", ("body_plain",)),
    ("body_amp", ("body_amp",)),
    ("preheader", ("preheader", "preheader_text")),
    ("from", ("from",)),
    ("reply_to", ("reply_to",)),
    ("to", ("to", "recipient")),
    ("cc", ("cc",)),
    ("bcc", ("bcc",)),
)
#: In these namespaces a missing attribute makes a message fail (docs).
STRICT_NAMESPACES = frozenset({"customer", "event", "trigger", "journey"})

#: Headers that a message has by itself and that can't be replaced.
RESERVED_HEADERS = frozenset(
    (
        "from", "to", "cc", "bcc", "subject", "date", "message-id", "reply-to", "sender",
        "return-path", "mime-version", "content-type", "content-transfer-encoding", "received",
        "dkim-signature", "cio-delivery-id",
    )
)  # fmt: skip


def header_pairs(value: Json) -> List[Tuple[str, str]]:
    """Headers as they are given: a JSON text or a list of `[{name, value}]`, or an object.

    Raises ApiError, TypeError or KeyError for anything else.
    """
    rows = decode_json((value or "[]").encode()) if isinstance(value or "", str) else value
    if isinstance(rows, dict):
        rows = [{"name": name, "value": text} for name, text in rows.items()]
    return [(row["name"], row["value"]) for row in rows]


def checked_headers(value: Json) -> List[Tuple[str, str]]:
    """Headers out of a JSON text of `[{name, value}]`, or the older object. Raises ApiError 400."""
    if value in (None, "", "[]"):
        return []
    try:
        pairs = header_pairs(value)
    except (ApiError, TypeError, KeyError):
        raise invalid('"headers" must be a JSON list of {"name", "value"}', "headers") from None
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise invalid('"headers" must have names and values as strings', "headers")
        if not re.fullmatch(r"[!-9;-~]+", name) or not re.fullmatch(r"[ -~]*", text):
            raise invalid(f'"headers": {name!r:.80} and its value must be plain ASCII', "headers")
        if name.lower() in RESERVED_HEADERS:
            raise invalid(f'"headers": {name} is reserved', "headers")
    return pairs


#: Channels that need an address; what goes through others still has a recipient (observed).
_ADDRESSED_CHANNELS = ("email", "sms", "whatsapp")
#: Channels that an unsubscribed person gets all the same (reference).
_UNASKED_CHANNELS = ("in_app", "inbox_message", "webhook", "slack")


def customer_data(person: Person) -> Json:
    """`customer` in a template: scalars are strings, as everywhere (docs)."""
    attributes = person.all_attributes()
    for name, value in attributes.items():
        if value.__class__ not in (str, dict, list):
            attributes[name] = as_text(value)
    return attributes


def _campaign_data(mail: Mail) -> Json:
    campaign = {name: mail.parent.get(name) for name in ("id", "name", "type")}
    if mail.family is TRANSACTIONAL:
        campaign["type"] = "transactional_message"
    if mail.family is CAMPAIGNS:
        topic = mail.parent.get("subscription_topic_id")
        campaign["subscription_topic_ids"] = [topic] if topic else []
    return campaign


def _message_data(delivery: Delivery, mail: Mail) -> Json:
    content, journey = mail.content, delivery.journey
    more = {"type": f"{content.get('type')}_action", "journey_id": journey.id} if journey else {}
    return {
        **{name: content.get(name) for name in ("id", "name", "type", "subject")},
        "preheader": content.get("preheader_text"),
        "send_to_unsubs": content.get("send_to_unsubscribed", True),
        **more,
    }


#: What a journey has for its templates; its data are an `event` or a `trigger` (docs).
OF_JOURNEYS: Dict[str, Callable[[Any], Json]] = {
    "journey": lambda journey: journey.attributes,
    **dict.fromkeys(("event", "trigger"), lambda journey: journey.data),
    "event_name": lambda journey: journey.event and journey.event.name,
    "event_id": lambda journey: journey.event_id,
    "event_timestamp": lambda journey: journey.event and as_text(int(journey.event.when)),
}


def _of_journey(make: Callable[[Any], Json]) -> Callable[[Workspace, Delivery, Mail], Json]:
    return lambda _, delivery, mail: make(delivery.journey)


#: What a template can name, and how it is made, under the workspace's lock.
NAMESPACES: Dict[str, Callable[[Workspace, Delivery, Mail], Json]] = {
    "customer": lambda _, delivery, mail: customer_data(delivery.person) if delivery.person else {},
    "trigger": lambda _, delivery, mail: delivery.data,
    "campaign": lambda _, delivery, mail: _campaign_data(mail),
    "message": lambda _, delivery, mail: _message_data(delivery, mail),
    "snippets": lambda workspace, delivery, mail: {
        row["name"]: row["value"] for row in workspace.shelves["snippets"].rows.values()
    },
    "delivery_id": lambda _, delivery, mail: delivery.delivery_id,
    **{name: _of_journey(make) for name, make in OF_JOURNEYS.items() if name != "trigger"},
}


def template_data(workspace: Workspace, delivery: Delivery, mail: Mail, text: str) -> Json:
    """What templates of this text can name, which is made for them alone."""
    # These can name what the text does not spell out.
    hidden = "snippets" in text or "render_liquid" in text or "[" in text
    made: Json = {}
    with workspace.lock:
        for name in mail.names:
            if hidden or name in text:
                made[name] = NAMESPACES[name](workspace, delivery, mail)
    return made


def link_through(
    workspace: Workspace, delivery: Delivery, links: List[Json], href: str, tracked: bool
) -> str:
    """Note a link of a message; gives where it leads: through this server if it is tracked."""
    with workspace.lock:
        number = workspace.deliveries.link_number(href)
    links.append({"id": number, "href": href, "tracked": tracked})
    return f"{delivery.base_url}/e/c/{delivery.delivery_id}/{number}" if tracked else href


def recipient_of(person: Person, channel: str) -> str:
    """Whom a message is to that names nobody: the email, else the id where any name will do."""
    return person.email if channel in _ADDRESSED_CHANNELS else person.email or person.name


def is_trackable(href: str, classes: str = "") -> bool:
    """Whether a link can be tracked: to the web, and not of the class "untracked" (docs)."""
    return href[:4].lower() == "http" and "untracked" not in classes.split()


def is_tracking(mail: Mail) -> bool:
    """Whether the links of a message are tracked."""
    return mail.content.get("tracked", mail.parent.get("link_tracking", True)) is True


def link_tag(
    workspace: Workspace,
    delivery: Delivery,
    mail: Mail,
    links: List[Json],
    arguments: Mapping[str, str],
) -> str:
    """What `cio_link` prints: a link to track; those of an email are tracked where they stand."""
    href, wanted = arguments.get("url", ""), arguments.get("track", "").lower() != "false"
    if not is_trackable(href) or (wanted and delivery.channel == "email"):
        return href
    return link_through(workspace, delivery, links, href, wanted and is_tracking(mail))


def template_host(workspace: Workspace, delivery: Delivery, mail: Mail, links: List[Json]) -> Json:
    """What Customer.io's own tags print; their links work on this server, and join `links`."""
    base, id = delivery.base_url, delivery.delivery_id
    url = f"{base}/unsubscribe/{id}"
    view = f"{base}/e/v/{id}"
    center = f"{base}{subscription_path(workspace, delivery.person)}" if delivery.person else ""
    topic = workspace.shelves["topics"].rows.get(mail.parent.get("subscription_topic_id")) or {}
    return {
        "cio_link": functools.partial(link_tag, workspace, delivery, mail, links),
        "unsubscribe_url": url,
        "unsubscribe": f'<a href="{url}">Unsubscribe</a>',
        "view_in_browser_url": view,
        "view_in_browser": f'<a href="{view}">View in browser</a>',
        "manage_subscription_preferences_url": center,
        "tracking_consent_url": center,
        "subscription_topic_name": topic.get("name") or "",
        "generate_uuid": lambda arguments: uuid_of(workspace.count("uuid")),
    }


def sources_of(delivery: Delivery, mail: Mail) -> Dict[str, str]:
    """The parts of a message as they were written, by what they are called once rendered."""
    sources, content = {}, mail.content
    for part, names in _RENDERED_PARTS:
        for name in names:
            source = content.get(name)
            if source:
                if source.__class__ is str:
                    sources[part] = source
                break
    usual = sources.get("to") == BLANKS["content"]["recipient"] and not content.get("to")
    if usual and delivery.channel not in _ADDRESSED_CHANNELS:  # which the person need not have
        del sources["to"]
    return sources


def render_mail(workspace: Workspace, delivery: Delivery, mail: Mail, now: float) -> Json:
    """Render all parts of a message, at a time in Unix seconds. Raises LiquidError or TakesTime."""
    rendered: Json = sources_of(delivery, mail)
    links: List[Json] = []
    text = "\n".join(rendered.values())
    if "{" in text or len(text) > _LIMITS.output:  # else it is its own rendering
        data = template_data(workspace, delivery, mail, text)
        tags = "{%" in text or "snippets" in text or "render_liquid" in text
        host = template_host(workspace, delivery, mail, links) if tags else {}
        budget = budget_now()
        for part, source in rendered.items():
            if "{" in source or len(source) > _LIMITS.output:
                rendered[part] = rendered_within(budget, source, data, now, host)
    for part, field_name in (("from", "from_id"), ("reply_to", "reply_to_id")):
        number = mail.content.get(field_name)
        if number and rendered and not rendered.get(part):
            address = sender_address(workspace, number)
            rendered.update({part: address} if address else {})
    return {**rendered, "links": links} if links else rendered


#: What a hurried thread may render: less than some milliseconds' work, however it is written.
BRIEF = LiquidLimits(iterations=500, work=5_000)
MAX_BRIEF_TEXT, MAX_BRIEF_TAGS = 64_000, 250


def budget_now() -> Budget:
    """What a message may use up: less in a hurried thread."""
    return Budget(BRIEF) if threading.get_ident() in HURRIED else Budget()


def rendered_within(
    budget: Budget, source: str, data: Json, now: float, host: Optional[Json] = None
) -> str:
    """What a template prints. Raises LiquidError, and TakesTime for what a thread may take over."""
    brief = budget.limits is BRIEF
    if brief and (len(source) > MAX_BRIEF_TEXT or source.count("{") > MAX_BRIEF_TAGS):
        raise TakesTime
    try:
        return parse_liquid(source).render(data, STRICT_NAMESPACES, now, host, budget)
    except Exhausted:
        if brief:
            raise TakesTime from None
        raise


def sender_address(workspace: Workspace, number: Json) -> str:
    """The address of a sender identity, "" if there is none of this number."""
    row = workspace.shelves["sender_identities"].rows.get(number) or {}
    named = f"{row.get('name') or ''} <{row.get('email') or ''}>" if row.get("email") else ""
    return row.get("address") or named


# ---- HTML


class Tag(NamedTuple):
    """A tag in HTML. What else stands in angle brackets, such as a comment, has no name."""

    source: str
    name: str = ""
    closes: bool = False
    attributes: str = ""

    def place(self, name: str) -> Optional[Tuple[int, int]]:
        """Give where in `source` the value of an attribute stands; None if there is no such."""
        for match in _ATTRIBUTE.finditer(self.attributes):
            if match[1].lower() == name:
                first, end = match.span(match.lastindex or 1)
                first = end if match.lastindex == 1 else first
                return len(self.name) + 1 + first, len(self.name) + 1 + end
        return None

    def value(self, name: str) -> Optional[str]:
        """Give the value of an attribute, "" if it stands alone; None if there is no such."""
        place = self.place(name)
        return place and _ENTITY.sub(lambda it: unescape(it[0]), self.source[slice(*place)])


#: Markup as a browser reads it. What isn't closed goes on to the end: what has begun to match
#: can't fail, so that nothing is read twice, whatever the text.
_MARKUP = re.compile(
    r"""<!--.*?(?:-->|\Z) | <[!?][^>]*>? | </(?![a-z])[^>]*>?
    | <(/?)([a-z][^\s/>]*)((?:=\s*"[^"]*(?:"|\Z)|=\s*'[^']*(?:'|\Z)|[^>=]+|=)*)>?""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_ATTRIBUTE = re.compile(r"""([^\s=/>]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*)))?""")
_ENTITY = re.compile(r"&(?:\w{1,32}|#\w{1,8});")
#: What stands in these is text, whatever it looks like.
_RAW_TEXT = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in ("script", "style", "title")
}


def html_parts(html: str) -> Iterator[Union[str, Tag]]:
    """Give the texts and tags that HTML consists of, whole and in order, in linear time."""
    position = 0
    while match := _MARKUP.search(html, position):
        yield html[position : match.start()]
        position, name = match.end(), (match[2] or "").lower()
        yield Tag(match[0], name, match[1] == "/", match[3] or "")
        if name in _RAW_TEXT and not match[1]:
            end = _RAW_TEXT[name].search(html, position)
            yield html[position : end.start() if end else None]
            position = end.start() if end else len(html)
    yield html[position:]


def text_of(html: str) -> str:
    """What a stretch of HTML without tags says."""
    return unescape(_ABSURD_ENTITY.sub("\ufffd", html))


#: Numbers that `unescape` may refuse to convert; no character has such a one.
_ABSURD_ENTITY = re.compile(r"&#\d{9,};?")


def track_links(workspace: Workspace, delivery: Delivery, rendered: Json, tracked: bool) -> Json:
    """Note the links of an email and lead them, and an open pixel, through this server."""
    body: str = rendered["body"]
    links: List[Json] = []
    if "<a" in body or "<A" in body:
        body = _lead_links(workspace, delivery, rendered, tracked, links)
    if tracked:
        pixel = _OPEN_PIXEL.format(delivery.base_url, delivery.delivery_id)
        before, end, after = body.rpartition("</body>")
        body = before + pixel + end + after if end else body + pixel
    made = {**rendered, "body": body, "links": links}
    if not links:  # as of most
        del made["links"]
    return made


def _lead_links(
    workspace: Workspace, delivery: Delivery, rendered: Json, tracked: bool, links: List[Json]
) -> str:
    """The body of an email with its links led through this server; they join `links`."""
    own = (f"{delivery.base_url}/unsubscribe/", f"{delivery.base_url}/e/")
    alone = {row["href"] for row in rendered.get("links", ()) if not row["tracked"]}

    def lead(tag: Tag) -> str:
        place, href = tag.place("href"), tag.value("href") or ""
        if not place or not _WEB.match(href) or href.startswith(own):
            return tag.source
        wanted = tracked and href not in alone and is_trackable(href, tag.value("class") or "")
        url = link_through(workspace, delivery, links, href, wanted)
        return tag.source[: place[0]] + url + tag.source[place[1] :] if wanted else tag.source

    def led(part: Union[str, Tag]) -> str:
        if isinstance(part, str):
            return part
        return lead(part) if part.name == "a" and not part.closes else part.source

    return "".join(map(led, html_parts(rendered["body"])))


#: The image that tells that a message is open.
_OPEN_PIXEL = '<img src="{}/e/o/{}" width="1" height="1" alt="">'


def untracked(delivery: Delivery, body: str) -> str:
    """An email's HTML with links that lead where they lead, and without the open pixel."""
    hrefs = {str(row["id"]): row["href"] for row in delivery.tracked_links()}
    tracked = re.escape(f"{delivery.base_url}/e/c/{delivery.delivery_id}/") + r"(\d+)"
    body = re.sub(tracked, lambda match: escape(hrefs.get(match[1], match[0])), body)
    return body.replace(_OPEN_PIXEL.format(delivery.base_url, delivery.delivery_id), "")


_WEB = re.compile("https?://", re.IGNORECASE)
#: Elements that nobody sees, and those that end a line.
_UNSEEN = ("script", "style", "head", "title")
_LINES = ("p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "tr", "li")


def plain_text(html: str) -> str:
    """The words of an HTML body, for recipients without HTML."""
    texts: List[str] = []
    inside = ""
    for part in html_parts(html):
        if isinstance(part, str):
            texts.append("" if inside else text_of(part))
        elif inside:
            inside = "" if part.name == "body" or (part.closes and part.name == inside) else inside
        elif part.name in _UNSEEN and not part.closes:
            inside = part.name
        elif part.name == "br" or (part.closes and part.name in _LINES):
            texts.append("\n")
    text = re.sub(r"[ \t]+", " ", "".join(texts))
    return re.sub(r"\n\s*\n+", "\n\n", text).strip()


#: What an email with a body has, and what of the body that is unless it was given.
_FOLLOWING_PARTS: Dict[str, Callable[[str], Json]] = {
    "links": lambda body: [],
    "body_plain": plain_text,
    "headers": lambda body: {},
}


def as_seen(delivery: Delivery) -> Json:
    """All that the recipient of a message would have seen; made when it is first asked for."""
    if delivery.seen is None:
        rendered, following = delivery.rendered, _FOLLOWING_PARTS
        if delivery.channel != "email" or not rendered.get("body"):
            following = {}
        missing = [name for name in following if name not in rendered]
        made = {name: following[name](rendered["body"]) for name in missing}
        delivery.seen = {**rendered, **made}
    return delivery.seen


def delivery_record(delivery: Delivery) -> DeliveryRecord:
    """A delivery as `/__parlel/deliveries` shows it."""
    return {
        "delivery_id": delivery.delivery_id,
        "channel": delivery.channel,
        "message": delivery.message,
        "customer_id": delivery.customer_id,
        "cio_id": delivery.person.cio_id if delivery.person else None,
        "recipient": delivery.recipient,
        "state": delivery.state,
        "failure_message": delivery.failure or None,
        "rendered": as_seen(delivery),
        "parents": delivery.parents,
        "metrics": delivery.metrics,
        "history": delivery.history,
        "devices": list(delivery.devices),
        "send_at": delivery.send_at,
        "received_at": delivery.created,
    }


# ======================================================================================
# ==== §13 Sending
# ======================================================================================


# ---- one message


def topic_name(topic: Json) -> str:
    """What preferences call a topic."""
    return str(topic.get("identifier") or f"topic_{topic['id']}")


def subscribed_to(workspace: Workspace, person: Person, topic: Json) -> bool:
    """Whether a person wants a topic: by choice, else by the topic's default (reference)."""
    preferences = person.attributes.get(_PREFERENCES)
    chosen = preferences.get("topics") if isinstance(preferences, dict) else None
    name = topic_name(topic)
    default = topic.get("subscribed_by_default", True)
    return is_yes(chosen.get(name, default) if isinstance(chosen, dict) else default)


def refusal_of(workspace: Workspace, delivery: Delivery, mail: Mail) -> str:
    """Why a person does not want this message, or "": unsubscribed from all, a channel or topic."""
    person, channel = cast(Person, delivery.person), delivery.channel
    if person.unsubscribed():
        return "the person is unsubscribed"
    preferences = person.attributes.get(_PREFERENCES)
    channels = preferences.get("channels") if isinstance(preferences, dict) else None
    if isinstance(channels, dict) and not is_yes(channels.get(channel, True)):
        return f"the person is unsubscribed from the channel {channel}"
    topic = workspace.shelves["topics"].rows.get(mail.parent.get("subscription_topic_id"))
    if topic is not None and not subscribed_to(workspace, person, topic):
        return f"the person is unsubscribed from the topic {topic.get('name')!r}"
    if (channel, delivery.rendered.get("from")) in workspace.optouts.get(person.serial, ()):
        return "the person has opted out of this sender"
    return ""


def obstacle(workspace: Workspace, delivery: Delivery, mail: Mail) -> Tuple[str, str]:
    """What keeps a rendered message from being sent: a metric and the reason, or ("", "")."""
    person, channel, content = delivery.person, delivery.channel, mail.content
    if person not in workspace.people:
        return "undeliverable", "the person has been deleted"
    if channel == "push" and not delivery.addressed():
        has = delivery.person is not None and delivery.person.has.devices
        # That such a push isn't sent is inferred.
        return "undeliverable", f"the person has no device{' with the token in to' if has else ''}"
    if "subject" not in delivery.rendered and "body" not in delivery.rendered:
        return "", ""  # nothing is known of the template, so nothing can be wrong with it
    if channel not in _UNASKED_CHANNELS and not content.get("send_to_unsubscribed", True):
        unwanted = refusal_of(workspace, delivery, mail)
        if unwanted:
            return "undeliverable", unwanted
    if channel == "email" and not delivery.rendered.get("subject", "").strip():
        return "failed", "subject is blank"
    if channel in _ADDRESSED_CHANNELS and not delivery.recipient.strip():
        return "undeliverable", "the message has no recipient"
    return email_obstacle(workspace, delivery) if channel == "email" else ("", "")


def email_obstacle(workspace: Workspace, delivery: Delivery) -> Tuple[str, str]:
    """What keeps an email from being sent that has all that it needs, as `obstacle` gives it."""
    suppressed = suppressing_list(workspace, delivery)
    if suppressed:
        return "dropped", suppressed
    return ("undeliverable", UNVERIFIED) if is_from_elsewhere(workspace, delivery) else ("", "")


#: Why nothing is sent since 22 June 2026 (docs).
UNVERIFIED = "from address does not belong to a verified sending domain"


def domains_of(workspace: Workspace) -> Set[str]:
    """The domains of the sender identities, which count as verified; none if none are seeded."""
    senders = workspace.shelves["sender_identities"].rows.values()
    named = [as_text(row.get("email") or row.get("address") or "") for row in senders]
    return {domain_in(text) for text in named} - {""}


def domain_in(text: str) -> str:
    """The domain of an address like `Ada <ada@example.com>`, in lower case; "" if it has none."""
    return parseaddr(text)[1].rpartition("@")[2].lower()


def is_from_elsewhere(workspace: Workspace, delivery: Delivery) -> bool:
    """Whether an email's sender is of a domain that nobody verified, once senders are seeded."""
    known, sender = domains_of(workspace), as_text(delivery.rendered.get("from") or "")
    return bool(known and sender) and domain_in(sender) not in known


def suppressing_list(workspace: Workspace, delivery: Delivery) -> str:
    """Which list of the email provider keeps this email back, as a reason, or ""."""
    if not any(workspace.deliveries.esp.values()):
        return ""
    named = {address.lower() for _, address in getaddresses([delivery.recipient])}
    for name, rows in workspace.deliveries.esp.items():
        if not named.isdisjoint(rows):
            return f"the email provider suppresses this address: {name}"
    return ""


def _add_custom_device(workspace: Workspace, delivery: Delivery) -> None:
    """Add or update the device that comes with a push, at the time of the send (reference)."""
    person, device = delivery.person, delivery.message.get("custom_device")
    with workspace.lock:
        if device and person in workspace.people:
            who = ("cio_id", cast(Person, person).cio_id)
            workspace.devices.add_device(who, *device_of(device, "token", workspace.seconds()))


@chore
def dispatch(workspace: Workspace, delivery: Delivery, mail: Mail) -> None:
    """Render a message and send it, as far as it gets: to delivered, drafted, or failed."""
    now = workspace.clock.now()
    if delivery.channel == "push":
        _add_custom_device(workspace, delivery)
    try:
        rendered, headers = render_mail(workspace, delivery, mail, now), mail.content.get("headers")
        headers = checked_headers(headers) if headers else ()
    except (LiquidError, ApiError) as error:
        place = {name: getattr(error, name, None) for name in ("line", "column")}
        where = "line {line}, column {column}".format(**place)
        log.warning("delivery %s failed: %s (%s)", delivery.delivery_id, error, where)
        with workspace.lock:
            workspace.deliveries.report(delivery, "failed", int(now), str(error), **place)
        return
    if delivery.channel == "email" and rendered.get("body"):
        rendered = track_links(workspace, delivery, rendered, is_tracking(mail))
        if headers:
            rendered["headers"] = {name: [text] for name, text in headers}
    with workspace.lock:
        delivery.rendered, delivery.seen = rendered, None
        _send_on(workspace, delivery, mail, int(now))


def _send_on(workspace: Workspace, delivery: Delivery, mail: Mail, now: int) -> None:
    """Note what becomes of a rendered message, in Unix seconds. Under the lock."""
    report, to = workspace.deliveries.report, delivery.rendered.get("to")
    # A push goes to device tokens (reference); how several are listed is inferred.
    to = ", ".join(delivery.addressed()) if delivery.channel == "push" else to
    delivery.recipient = to or delivery.recipient
    metric, reason = obstacle(workspace, delivery, mail)
    if metric:
        report(delivery, metric, now, reason)
    elif mail.content.get("queue_draft") or mail.parent.get("queue_drafts"):
        report(delivery, "drafted", now)
    else:
        report(delivery, "sent", now)
        if delivery.channel not in _UNASKED_CHANNELS:
            report(delivery, "delivered", now)


def deliver(
    workspace: Workspace, person: Person, mail: Mail, parents: Json, data: Json, base_url: str
) -> Delivery:
    """Send a content of a newsletter or broadcast to one person."""
    with workspace.lock:
        now = workspace.clock.now()
        kind = "newsletter" if mail.family is NEWSLETTERS else "broadcast"
        delivery_id = delivery_id_of(now, workspace.count("delivery"), kind)
        type: str = mail.content["type"]
        channel = _CHANNELS.get(type, type)
        delivery = Delivery(delivery_id, channel, shown(mail.content), int(now))
        delivery.person, delivery.customer_id = person, person.name
        delivery.recipient, delivery.parents = recipient_of(person, channel), parents
        delivery.data, delivery.base_url = data, base_url
        workspace.deliveries.post(delivery)
    dispatch(workspace, delivery, mail)
    return delivery


#: The other way round than MESSAGE_TYPES.
_CHANNELS = {type: channel for channel, type in MESSAGE_TYPES.items()}


# ---- transactional sends


def _wrong_headers(value: Json) -> str:
    wrong = typed_field(str, list, dict).wrong(value)
    rows = value if isinstance(value, list) else ()
    return wrong or next((OBJECT.wrong(row) for row in rows if OBJECT.wrong(row)), "")


#: What every transactional send takes; what is missing is told in the service's words (its
#: clients' tests).
_SEND = FieldList(
    lax=True, first=True, missing='Missing required field: "{}"', wrong='"{}" {}'
).having(
    word="transactional_message_id", text="to language", object="identifiers message_data",
    number="send_at", flag="queue_draft auto_create disable_message_retention "
    "send_to_unsubscribed tracked",
)  # fmt: skip
#: The fields of each kind of transactional send (reference).
SEND_FIELDS = {
    "email": _SEND.having(
        "to identifiers",
        text="body body_amp body_plain subject from cc bcc reply_to preheader",
        word="from_id reply_to_id", flag="fake_bcc disable_css_preprocessing",
        object="attachments", headers=Check("a JSON list of {name, value}", _wrong_headers),
    ),
    "push": _SEND.having(
        "transactional_message_id identifiers", text="title message image_url link sound",
        object="custom_data custom_device custom_payload",
    ),
    **dict.fromkeys(
        ("sms", "whatsapp"),
        _SEND.having("transactional_message_id to identifiers", text="from"),
    ),
    **dict.fromkeys(
        ("inbox_message", "in_app"), _SEND.having("transactional_message_id identifiers")
    ),
}  # fmt: skip
#: An email without a template has all of its content with it.
_SEND_WHOLE = SEND_FIELDS["email"].having("body subject from")
_E164 = re.compile(r"\+[1-9]\d{1,14}")
MAX_SEND_AHEAD = 90 * 86400
MAX_RECIPIENTS = 15
MAX_ATTACHMENTS = 2 * 1000 * 1000


def accept(
    workspace: Workspace, channel: str, message: Json, base_url: str = ""
) -> Tuple[Delivery, Optional[Mail]]:
    """Accept a transactional message; gives its delivery, and what is to be sent of it now.

    An unknown person is created. `base_url` is where links in the message lead. What goes wrong
    from here on shows in the delivery, as in the real service. Raises ApiError in the order
    fields, recipients, attachments, template (inferred).
    """
    who = _check_send(channel, message, workspace.clock.now())
    with workspace.lock:
        now = workspace.clock.now()
        template = transactional_of(workspace, channel, message)
        delivery_id = delivery_id_of(now, workspace.count("delivery"), "transactional")
        delivery = Delivery(delivery_id, channel, message, int(now))
        delivery.parents = {"transactional_message_id": template["id"]}
        delivery.customer_id, delivery.base_url = who[1], base_url
        delivery.data = message.get("message_data") or {}
        send_at = message.get("send_at") and whole_number(message["send_at"], "send_at")
        delivery.send_at = send_at if send_at and send_at > now else None
        outcome = _address(workspace, delivery, who)
        workspace.deliveries.post(delivery)
        content = transactional_content(workspace, delivery)
        if content:
            delivery.parents = {**delivery.parents, "content_id": content["id"]}
        if delivery.person is None:
            metric = "dropped" if outcome.kind == "suppressed" else "failed"
            reason = outcome.text or NO_PERSON.text
            workspace.deliveries.report(delivery, metric, delivery.created, reason=reason)
            return delivery, None
    mail = Mail(TRANSACTIONAL, template, {**content, **message} if content else message)
    if delivery.send_at is None:
        return delivery, mail
    workspace.agenda.later(delivery.send_at, dispatch, delivery, mail)
    return delivery, None


def transactional_content(workspace: Workspace, delivery: Delivery) -> Json:
    """The content of a delivery's template in the recipient's language, or the default one."""
    number = delivery.parents["transactional_message_id"]
    contents = workspace.shelves["transactional_contents"].where(_parent=number)
    if not contents:
        return {}
    wanted = delivery.message.get("language")
    if not wanted and delivery.person is not None:
        wanted = delivery.person.text("language")
    by_language = {content["language"]: content for content in reversed(contents)}
    return by_language.get(wanted) or by_language.get("") or {}


def _address(workspace: Workspace, delivery: Delivery, who: Identifier) -> Outcome:
    """Tie a delivery to its person, who is made if unknown; gives what became of that."""
    outcome, person = DONE, workspace.people.find(who)
    if person is None:
        outcome = workspace.ingest(workspace.people.identify, who, {})
        person = workspace.people.find(who)
    if person is not None:
        delivery.person, delivery.customer_id = person, person.name
        delivery.recipient = delivery.recipient or recipient_of(person, delivery.channel)
    return outcome


def transactional_of(workspace: Workspace, channel: str, message: Json) -> Json:
    """The transactional message that a send names by number or trigger name.

    Without one, message 1 gets the metrics (docs). Raises ApiError 400 for an unknown one, once
    the workspace has seeded messages and `auto_create` does not ask for it; and if it asks for
    the name of another channel's message (reference).
    """
    shelf, given = workspace.shelves["transactional"], message.get("transactional_message_id")
    text = "1" if given in (None, "") else as_text(given)
    number = int(text) if text.isdecimal() and len(text) < 16 else None
    row = shelf.rows.get(number) if number else _by_trigger_name(shelf, text)
    created = message.get("auto_create") is True and number is None and channel != "whatsapp"
    if row is not None:
        owner = _channel_of(workspace, row) if created else ""
        if owner not in ("", channel):
            raise invalid(
                f"{text!r:.80} belongs to a message of {owner}", "transactional_message_id"
            )
        return row
    if not shelf.open and not created and given not in (None, ""):
        raise invalid('"transactional_message_id" not found.', "transactional_message_id")
    row = {**blank_row(workspace, "transactional", text), "_channel": channel}
    return shelf.add(row if number else {**row, "trigger_name": text}, number)


def _channel_of(workspace: Workspace, row: Json) -> str:
    """What a transactional message is sent by; "" if nothing says so."""
    contents = workspace.shelves["transactional_contents"].where(_parent=row["id"])
    type = row.get("_channel") or (contents[0]["type"] if contents else "")
    return _CHANNELS.get(type, type)


def _by_trigger_name(shelf: Shelf, text: str) -> Optional[Json]:
    wanted = text.casefold()
    rows = [
        row
        for row in shelf.rows.values()
        if wanted in (as_text(row.get(key)).casefold() for key in ("trigger_name", "name"))
    ]
    return rows[0] if rows else None


class Misread(ApiError):
    """A send with a value of the wrong JSON type, which the service refuses as a whole."""


def _check_send(channel: str, message: Json, now: float) -> Identifier:
    whole = channel == "email" and message.get("transactional_message_id") in (None, "")
    problems = list((_SEND_WHOLE if whole else SEND_FIELDS[channel]).problems(message))
    for problem in problems:
        if problem.reason != "required":
            raise Misread(400, problem)
    if problems:
        raise ApiError(400, problems[0])
    _check_recipients(channel, message)
    if (whole_number(message.get("send_at"), "send_at") or 0) > now + MAX_SEND_AHEAD:
        raise invalid('"send_at" must not be more than 90 days ahead', "send_at")
    _check_attachments(message.get("attachments") or {})
    checked_headers(message.get("headers"))
    if channel == "push" and message.get("custom_device"):
        device_of(message["custom_device"], "token", int(now))
    return one_identifier(message["identifiers"], ("id", "email", "cio_id"), "identifiers")


def _check_recipients(channel: str, message: Json) -> None:
    to = message.get("to") or ""
    if channel in ("sms", "whatsapp") and "{{" not in to and not _E164.fullmatch(to):
        raise invalid("Invalid phone number format. Phone numbers must be in E.164 format.", "to")
    if channel == "email":
        lists = [message.get(name) for name in ("to", "cc", "bcc")]
        count = sum(len(text.split(",")) for text in lists if text)
        if count > MAX_RECIPIENTS:
            raise invalid(f"to, cc and bcc name {count} addresses; {MAX_RECIPIENTS} at most", "to")


#: File types that are refused as attachments; the service's list isn't published, this is the
#: one that mail providers agree on (inferred).
FORBIDDEN_FILES = frozenset(
    (
        "ade", "adp", "apk", "appx", "bat", "cab", "chm", "cmd", "com", "cpl", "dll", "dmg", "exe",
        "hta", "ins", "isp", "iso", "jar", "js", "jse", "lib", "lnk", "mde", "msc", "msi", "msix",
        "msp", "mst", "nsh", "pif", "ps1", "scr", "sct", "shb", "sys", "vb", "vbe", "vbs", "vxd",
        "wsc", "wsf", "wsh",
    )
)  # fmt: skip


def _check_attachments(attachments: Dict[str, str]) -> None:
    total = 0
    for name, content in attachments.items():
        ending = name.rpartition(".")[2].lower()
        if not name.isprintable():
            raise invalid("names of attachments must be printable", "attachments")
        if ending in FORBIDDEN_FILES:
            raise ApiError(403, f"Forbidden file type {ending} for attachment {name}.")
        try:
            total += len(base64.b64decode(content, validate=True))
        except ValueError:
            raise invalid(f'Attachment must be base64 encoded: "{name}"', "attachments") from None
    if total > MAX_ATTACHMENTS:
        raise ApiError(413, "Total attachment size exceeds the limit")


# ---- what others have: requests of ours

#: The largest file that is fetched, in bytes, how long that may take, in seconds, and how often
#: it may be elsewhere.
MAX_FILE, FILE_TIMEOUT, MAX_REDIRECTS = 100 * 1000 * 1000, 10, 5
#: More lines of a file are not read, and of more errors only the number is kept.
MAX_LINES, MAX_ERRORS = 100_000, 1000


def hang_up(sock: socket.socket) -> None:
    """Wake whoever waits for this socket."""
    with contextlib.suppress(OSError):
        # The base class's, because SSLSocket's own is not meant for other threads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Deadline:
    """Hangs up on a peer after so many seconds, as a socket's own time-out is for each step."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passed = seconds, False
        self._socket: Optional[socket.socket] = None
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, sock: socket.socket) -> None:
        """From now on this socket is what to hang up. Raises TimeoutError if it is too late."""
        self._socket = sock
        self.check()

    def check(self) -> None:
        """Raises TimeoutError if time is up."""
        if self.passed:
            raise TimeoutError(f"no answer within {self.seconds:g} seconds")

    def cancel(self) -> None:
        """Let the socket live."""
        self._timer.cancel()

    def hang_up(self) -> None:
        """Wake whoever waits for the peer."""
        if self._socket is not None:
            hang_up(self._socket)

    def _pass(self) -> None:
        self.passed = True
        self.hang_up()


def places_of(host: str, port: int) -> List[Tuple[str, int]]:
    """The addresses of a host. Raises OSError, or ValueError for one like 169.254.169.254.

    There clouds keep their secrets, so no name or spelling of such an address may lead to it.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    places = [(str(place[0]), port) for *_, place in found]
    for place, _ in places:
        for address in _meant_by(ipaddress.ip_address(place.partition("%")[0])):
            if address.is_link_local:
                raise ValueError(f"{host} is a link-local address, which is refused")
    return places


def _meant_by(address: Any) -> Iterator[Any]:
    """An address, and those of IPv4 inside of it."""
    yield address
    if address.version == 6:
        inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        # As ::169.254.169.254, and what NAT64 makes of it (RFC 6052).
        if address.packed[:12] in (bytes(12), b"\0\x64\xff\x9b" + bytes(8)):
            inside.append(ipaddress.IPv4Address(address.packed[12:]))
        yield from filter(None, inside)


def dial(host: str, port: int, context: Optional[ssl.SSLContext], deadline: Deadline) -> Any:
    """Connect, with TLS if there is a context for it. Raises OSError or ValueError."""
    failure: OSError = OSError(f"{host} has no address")
    for place in places_of(host, port):  # and no other: a name may mean something else next time
        try:
            sock = socket.create_connection(place, deadline.seconds)
            break
        except OSError as error:
            failure = error
    else:
        raise failure
    sock.settimeout(deadline.seconds + 1)  # the deadline comes first, and has the better words
    try:
        deadline.watch(sock)
        if context is not None:
            # TLS goes over a new socket, which has to be watched while hands are shaken.
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            deadline.watch(sock)
            sock.do_handshake()
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def asked(
    url: str, method: str, headers: Mapping[str, str], body: bytes, deadline: Deadline
) -> Iterator[HTTPResponse]:
    """The answer to a request of ours, with its body to be read; follows no redirect.

    Raises OSError or ValueError, also for what goes wrong with the body; TimeoutError if the
    deadline passes, however slowly the answer comes.
    """
    import ssl
    from http.client import HTTPConnection, HTTPException

    parts, more = urlsplit(url), {}
    context = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (80 if context is None else 443)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r:.100} is not an http or https URL")
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        more["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    connection = HTTPConnection(parts.hostname, port)
    connection.default_port = 80 if context is None else 443
    try:
        connection.sock = dial(parts.hostname, port, context, deadline)
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        connection.request(method, path, body or None, {**headers, **more})
        answer = connection.getresponse()
        deadline.check()
        yield answer
    except (OSError, HTTPException) as error:
        deadline.check()
        if isinstance(error, OSError):  # also who hung up without a word
            raise
        raise ValueError(repr(error)) from None
    finally:
        connection.close()


def fetched(url: Json, name: str) -> bytes:
    """What is behind a URL, 100 MB at most, gzip or not. Raises ApiError 400."""
    if not isinstance(url, str) or not re.match(r"https?://", url):
        raise invalid(f"{name} must be an http or https URL", name)
    deadline = Deadline(FILE_TIMEOUT)
    try:
        data = _downloaded(url, deadline)
        return decompressed(data, 47, MAX_FILE) if data[:2] == b"\x1f\x8b" else data
    except (OSError, ValueError, zlib.error) as error:
        text = str(error) or type(error).__name__
        raise invalid(f"{name} can't be fetched: {text}", name) from None
    finally:
        deadline.cancel()


def _downloaded(url: str, deadline: Deadline) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        with asked(url, "GET", {"User-Agent": "customerio_fake"}, b"", deadline) as answer:
            elsewhere = answer.getheader("Location") if answer.status // 100 == 3 else None
            if not elsewhere and answer.status != 200:
                text = f"{answer.status} {answer.reason:.100}".strip()
                raise ValueError(f"server responded with code {text}")
            if not elsewhere:
                return _whole_body(answer, deadline)
            url = urljoin(url, elsewhere)
    raise ValueError(f"it is elsewhere more than {MAX_REDIRECTS} times")


def _whole_body(answer: HTTPResponse, deadline: Deadline) -> bytes:
    """All of an answer's body. Raises ValueError if that is too much, or less than was said."""
    data = bytearray()
    while True:
        piece = answer.read(1 << 16)
        deadline.check()
        data += piece
        if len(data) > MAX_FILE:
            raise ValueError(f"it is larger than {MAX_FILE} bytes")
        if not piece:
            break
    if answer.length:
        raise ValueError(f"it ends {answer.length} bytes too early")
    return bytes(data)


# ---- broadcasts


def _unprocessable(message: str, name: str) -> ApiError:
    return ApiError(422, Problem(message, name))


#: The ways to name a broadcast's audience; a call may use one of them (reference).
AUDIENCES = ("recipients", "ids", "emails", "per_user_data", "data_file_url")
#: Which flags go with which audience; the server refuses others (the Go client's notes).
AUDIENCE_FLAGS: Dict[str, Sequence[str]] = {
    "ids": ("id_ignore_missing",),
    "emails": ("email_ignore_missing", "email_add_duplicates"),
    "per_user_data": ("id_ignore_missing", "email_ignore_missing", "email_add_duplicates"),
    "data_file_url": ("id_ignore_missing", "email_ignore_missing", "email_add_duplicates"),
}
MAX_AUDIENCE = 10_000
MAX_TRIGGER_DATA = 50_000


def trigger_broadcast(workspace: Workspace, broadcast_id: int, payload: Json) -> Trigger:
    """Record the trigger of a broadcast and find its audience. Raises ApiError 422."""
    _check_audience(payload)
    errors: List[str] = []
    # Before the lock: fetching takes time, and may be from ourselves.
    listed = _listed_rows(payload, errors)
    with workspace.lock:
        number, now = workspace.count("trigger"), workspace.seconds()
        audience = audience_of(workspace, broadcast_id, payload, listed, errors)
        row = {"id": number, "campaign_id": broadcast_id, "payload": payload}
        row["errors"] = [*errors[:MAX_ERRORS], *_further(len(errors) - MAX_ERRORS)]
        done = {"processed_at": None if audience and not errors else now, "received_at": now}
        workspace.broadcasts.append({**row, **done})
    if errors:
        # The number is used up although the call failed (reference).
        text = (
            "Errors were found while processing per user data (ids, emails or json data). More "
            f"detail available from the errors endpoint for trigger {number}"
        )
        raise _unprocessable(text, "per_user_data")
    return Trigger(number, audience)


def _further(count: int) -> List[str]:
    return [f"and {count} further errors"] if count > 0 else []


class Trigger(NamedTuple):
    """An accepted trigger: its number, and who gets the broadcast with which data."""

    number: int
    audience: List[Tuple[Person, Json]]


def audience_of(
    workspace: Workspace,
    broadcast_id: int,
    payload: Json,
    listed: Optional[List[Json]],
    errors: List[str],
) -> List[Tuple[Person, Json]]:
    """Who gets a broadcast, and the `trigger` data of each; errors are added line by line."""
    data = payload.get("data") or {}
    if listed is not None:
        return _listed_people(workspace, payload, listed, data, errors)
    broadcast = workspace.shelves["broadcasts"].rows.get(broadcast_id) or {}
    spec = payload.get("recipients") or broadcast.get("recipients")
    if not spec:
        return []  # the audience is set in the web app, and nobody has told us
    wanted = compile_filter(spec, "recipients", workspace.segments.is_member)
    return [(person, data) for person in workspace.people if wanted(person)]


def _listed_rows(payload: Json, errors: List[str]) -> Optional[List[Json]]:
    """The recipients that a call lists, one way or another; None if it doesn't."""
    for name, kind in (("ids", "id"), ("emails", "email")):
        if name in payload:
            return [{kind: value} for value in payload[name]]
    if "data_file_url" in payload:
        return _file_rows(payload["data_file_url"], errors)
    return cast(Optional[List[Json]], payload.get("per_user_data"))


def _file_rows(url: str, errors: List[str]) -> List[Json]:
    """The rows of a JSON Lines file, gzip or not; a bad line becomes an error and an empty row."""
    rows: List[Json] = []
    try:
        data = fetched(url, "data_file_url")
    except ApiError as error:  # which is the trigger's, not the call's (docs)
        reason = error.message.partition(" can't be fetched: ")[2] or error.message
        errors.append(f"failed to download data file, {reason}")
        return rows
    for number, line in enumerate(io.BytesIO(data), 1):
        if number > MAX_LINES:
            errors.append(f"line {number}: only {MAX_LINES} lines are read, and this file has more")
            break
        try:
            row = decode_json(line)
            if not isinstance(row, dict) or not isinstance(row.get("data", {}), dict):
                raise invalid("expected an object with id or email, and data as an object")
            rows.append(row)
        except ApiError as error:
            errors.append(f"line {number}: {error.message}")
            rows.append({})
    return rows


def _listed_people(
    workspace: Workspace, payload: Json, rows: List[Json], data: Json, errors: List[str]
) -> List[Tuple[Person, Json]]:
    found: List[Tuple[Person, Json]] = []
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        kind = "id" if "id" in row else "email"
        value = as_text(row.get(kind))
        same = workspace.people.with_email(value) if kind == "email" else ()
        person = workspace.people.find((kind, value))
        people = list(same) or ([person] if person else [])
        if not people and payload.get(f"{kind}_ignore_missing") is not True:
            errors.append(f"line {number}: no person has the {kind} {value!r}")
        if len(people) > 1 and payload.get("email_add_duplicates") is not True:
            errors.append(f"line {number}: several people have the email {value!r}")
        found += [(one, {**data, **(row.get("data") or {})}) for one in people]
    return found


def _wrong_row(row: Json) -> str:
    if not isinstance(row, dict) or not ("id" in row or "email" in row):
        return "must be an object with an id or an email"
    return "" if isinstance(row.get("data") or {}, dict) else ".data must be an object"


def _wrong_data(value: Json) -> str:
    if not isinstance(value, dict):
        return f"must be an object, not {kind_of(value)}"
    large = _longer(as_text(value), MAX_TRIGGER_DATA)
    return f"cannot be larger than {MAX_TRIGGER_DATA} bytes" if large else ""


#: The fields of a trigger (reference).
TRIGGER_FIELDS = FieldList(status=422, closed=True).having(
    filter="recipients",
    **dict.fromkeys(("ids", "emails"), list_field(ANYTHING, most=MAX_AUDIENCE)),
    per_user_data=list_field(Check("an object", _wrong_row), most=MAX_AUDIENCE),
    data_file_url=pattern_field(r"(?s).*://.*", "a URL"),
    any=" ".join(AUDIENCE_FLAGS["per_user_data"]),
    data=Check("an object", lambda value: "" if value is None else _wrong_data(value)),
)  # fmt: skip


def _check_audience(payload: Json) -> None:
    given = [name for name in AUDIENCES if name in payload]
    if len(given) > 1:
        raise _unprocessable(f"use only one of {', '.join(given)}", given[1])
    TRIGGER_FIELDS.read(payload)
    if given == ["recipients"]:
        _check_recipients_filter(payload["recipients"])
    _check_flags(payload, given[0] if given else "")


def _check_recipients_filter(value: Json) -> None:
    if value == {}:
        raise _unprocessable("empty recipients filter is not valid", "recipients")
    try:
        compile_filter(value, "recipients", lambda person, number: False)
    except ApiError as error:
        raise ApiError(422, *error.problems) from None


def _check_flags(payload: Json, audience: str) -> None:
    allowed = AUDIENCE_FLAGS.get(audience, ())
    for flag in AUDIENCE_FLAGS["per_user_data"]:
        if payload.get(flag) and flag not in allowed:
            raise _unprocessable(f"{flag} does not go with {audience or 'this audience'}", flag)


def send_broadcast(
    workspace: Workspace, broadcast_id: int, started: Trigger, base_url: str
) -> None:
    """Send a broadcast's messages to its audience; large ones in the background."""
    with workspace.lock:
        row = workspace.shelves["broadcasts"].rows.get(broadcast_id) or {"id": broadcast_id}
        actions = workspace.shelves["broadcast_actions"].where(_parent=broadcast_id)
    actions = [action for action in actions if action["sending_state"] != "off"]

    def mail_to(position: int, entry: Tuple[Person, Json]) -> None:
        person, data = entry
        for action in actions:
            if not action["parent_action_id"]:
                content = translated(actions, action, person)
                draft = {"queue_draft": action["sending_state"] == "draft"}
                mail = Mail(BROADCASTS, row, {"send_to_unsubscribed": False, **content, **draft})
                parents = {"broadcast_id": broadcast_id, "action_id": action["id"]}
                parents["trigger_id"] = started.number
                deliver(workspace, person, mail, parents, data, base_url)

    def finish() -> None:
        with workspace.lock:
            rows = workspace.broadcasts
            index = next(i for i, row in enumerate(rows) if row["id"] == started.number)
            rows[index] = {**rows[index], "processed_at": workspace.seconds()}

    workspace.agenda.run_for_all(started.audience, mail_to, finish)


def translated(actions: List[Json], action: Json, person: Person) -> Json:
    """An action in a person's language, if there is a translation."""
    language = person.text("language")
    for other in actions:
        if language and (other["parent_action_id"], other["language"]) == (action["id"], language):
            return other
    return action


# ---- newsletters

#: What a newsletter of each type must have of its own (reference).
NEWSLETTER_TYPES: Dict[str, Sequence[str]] = {
    "email": ("subject", "body"),
    "twilio": ("body",),
    "push": (),
    "in_app": ("body_json",),
    "webhook": ("body", "request_method", "url"),
    "inbox": ("body_json",),
}
RATE_FIELDS = FieldList(status=422).having(
    whole="rate_limit_email_rate", rate_limit_time_period=choice_field(60, 3600, 86400),
    flag="rate_limit_spread",
)  # fmt: skip

#: What can be changed of a content; the rest of a row is read-only and passed over (reference).
CONTENT_FIELDS = FieldList().having(
    text="name from body body_amp body_plain body_json subject preheader_text recipient bcc url "
    "request_method",
    maybe="from_id reply_to_id sender_identity_id", flag="fake_bcc tracked",
    sending_state=choice_field("automatic", "draft", "off"), headers=typed_field(str, list, dict),
)  # fmt: skip
TRANSLATION_FIELDS = CONTENT_FIELDS.having("language", filled="language")._replace(status=422)


def checked_rate(body: Json) -> Json:
    """The rate limit of a newsletter: rate and period belong together. Raises ApiError 422."""
    given = RATE_FIELDS.read(body)
    if ("rate_limit_email_rate" in given) != ("rate_limit_time_period" in given):
        text = "rate_limit_email_rate and rate_limit_time_period belong together"
        raise ApiError(422, text)
    return given


def _check_newsletter_recipients(spec: Json, member: Member) -> None:
    """`and` outside; inside it `attribute`, or segments in an `or`, or `not` of one (reference)."""
    compile_filter(spec, "recipients", member)
    for part in spec.get("and") or [{}]:
        inner = part.get("not", part)
        segments = inner.get("or")
        fits = segments and all(set(segment) == {"segment"} for segment in segments)
        if not fits and "attribute" not in part:
            text = (
                "Invalid filter spec: recipients.and takes attributes, and segments in an `or`, "
                'as in {"and": [{"or": [{"segment": {"id": 1}}]}]}'
            )
            raise ApiError(422, Problem(text, "recipients"))


def segments_of(spec: Json) -> List[int]:
    """The segments that a recipients filter names."""
    if isinstance(spec, list):
        return [number for part in spec for number in segments_of(part)]
    if not isinstance(spec, dict):
        return []
    own = [spec["segment"]["id"]] if isinstance(spec.get("segment"), dict) else []
    return own + [number for part in spec.values() for number in segments_of(part)]


def send_newsletter(workspace: Workspace, row: Json, base_url: str) -> Json:
    """Send a newsletter to its recipients now: each gets the content of one test group."""
    with workspace.lock:
        contents = workspace.shelves["newsletter_contents"].where(_parent=row["id"])
        if not contents:
            raise invalid("this newsletter has no content")
        groups = [contents]
        for group in workspace.shelves["test_groups"].where(_parent=row["id"]):
            groups.append([c for c in contents if c["id"] in group["content_ids"]])
        people = newsletter_recipients(workspace, row)
        now = workspace.seconds()
        row = workspace.shelves["newsletters"].change(row["id"], {"sent_at": now})

    def mail_to(position: int, person: Person) -> None:
        mine = groups[1:] or groups
        options = mine[position % len(mine)] or contents
        language = person.text("language") or ""
        content = next((c for c in options if c["language"] == language), options[0])
        parents = {"newsletter_id": row["id"], "content_id": content["id"]}
        # A newsletter passes the unsubscribed over (reference).
        mail = Mail(NEWSLETTERS, row, {"send_to_unsubscribed": False, **content})
        deliver(workspace, person, mail, parents, {}, base_url)

    workspace.agenda.run_for_all(people, mail_to)
    return row


def newsletter_recipients(workspace: Workspace, row: Json) -> List[Person]:
    """Who gets a newsletter: its recipients filter, or its segments."""
    segments = [{"segment": {"id": number}} for number in row.get("recipient_segment_ids") or ()]
    spec = (
        row.get("_recipients") or row.get("recipients") or ({"or": segments} if segments else None)
    )
    if spec is None:
        raise invalid("this newsletter has no recipients")
    wanted = compile_filter(spec, "recipients", workspace.segments.is_member)
    people = workspace.people
    return [person for person in people if wanted(person)]


def send_later(workspace: Workspace, row: Json, when: int, base_url: str) -> None:
    """Send a newsletter at a time in Unix seconds, unless that changes until then."""
    workspace.agenda.later(when, send_if_due, row["id"], when, base_url)


def _check_future(when: Optional[int], workspace: Workspace) -> None:
    if when and when <= workspace.seconds():
        raise ApiError(422, Problem("scheduled_at must be in the future", "scheduled_at"))


def _check_sender(workspace: Workspace, body: Json) -> None:
    number = body.get("from_id")
    if number is not None and body.get("from"):
        raise ApiError(422, Problem("from and from_id exclude each other", "from_id"))
    if number is not None and number not in workspace.shelves["sender_identities"].rows:
        raise ApiError(422, Problem("from_id names no sender identity", "from_id"))


def _check_zone(name: Json) -> None:
    if not isinstance(name, str) or not name:
        raise ApiError(422, Problem("timezone is required", "timezone"))
    try:
        zone_named(name)
    except ApiError as error:
        raise ApiError(422, *error.problems) from None


@chore
def send_if_due(workspace: Workspace, number: int, when: int, base_url: str) -> None:
    """Send a newsletter that was scheduled for `when`, unless that has changed."""
    if threading.get_ident() in HURRIED:
        raise TakesTime
    row = workspace.shelves["newsletters"].rows.get(number)
    if row and row.get("scheduled_at") == when and not row.get("sent_at"):
        with contextlib.suppress(ApiError):
            send_newsletter(workspace, row, base_url)


def _add_test_group(workspace: Workspace, newsletter: int, content_ids: List[int]) -> None:
    shelf = workspace.shelves["test_groups"]
    letter = chr(ord("A") + len(shelf.where(_parent=newsletter)) % 26)
    group = {"name": letter, "label": "", "winner": False, "content_ids": content_ids}
    shelf.add({**group, "_parent": newsletter})


# ======================================================================================
# ==== §14 Journeys
# ======================================================================================

#: For how long an event waits until its person matches the filter (docs), and how old it may be
#: to start anything (reference). Seconds.
FILTER_PATIENCE = 1800.0
OLDEST_TRIGGER = 72 * 3600.0
#: How many people an object, or a batch update, may lead to at once (docs).
MAX_RELATED = 1000
MAX_BATCH_UPDATE = 1000
#: What a journey can remember; more attributes are ignored (docs).
MAX_JOURNEY_ATTRIBUTES = 100
#: A conversion counts for as long as this after the message (docs). Seconds.
LONGEST_GOAL = 90 * 86400.0
#: Dates further from 1970 than this are taken for none. Seconds.
MAX_DATE = 60e9
#: How many journeys may set off each other in one instant; campaigns can go in circles.
MAX_CHAIN = 100


class TriggerType(NamedTuple):
    """A way into a campaign: its name in templates, and what it begins with."""

    #: `campaign.type` in a template (docs).
    liquid: str
    #: What templates call its data: `event …`, `trigger`, or nothing.
    names: str
    #: How often somebody may enter unless the campaign says otherwise (docs).
    restart: str
    #: The fields of which one tells who enters.
    told_by: Tuple[str, ...]


_OF_EVENT = "event event_name event_id event_timestamp"
#: By the App API's `type`. A form's namespace is inferred.
TRIGGERS: Dict[str, TriggerType] = {
    "segment": TriggerType("behavioral", "", "once", ("trigger_segment_ids", "trigger")),
    "event": TriggerType("transactional", _OF_EVENT, "rematch", ("event_name",)),
    "date": TriggerType("date", "", "rematch", ("date_attribute",)),
    "form": TriggerType("form", "event", "rematch", ("form_id",)),
    "webhook": TriggerType("webhook", "trigger", "rematch", ("webhook_id",)),
    "object": TriggerType("object", "trigger", "rematch", ("object_type_id",)),
    "relationship": TriggerType("relationship", "trigger", "rematch", ("object_type_id",)),
}
CAMPAIGN_STATES = ("draft", "running", "stopped", "archived")

_DURATION = number_field(0, MAX_NUMBER, int, float)
_ZONE = read_field("the name of a time zone", lambda value, name: zone_named(as_text(value)))
_NUMBERS_OF = list_field(WHOLE)
#: What makes a campaign run and no App API shows: the web app's names where they are known.
WORKFLOW = LAX.having(
    object="trigger filter attribute_filters goal", text="form_id",
    flag="exit_on_trigger_or_filter_not_matched exit_on_goal use_message_limits "
    "send_to_unsubscribed", whole="subscription_topic_id lead_days",
    restart_mode=choice_field("once", "rematch", "interval"), restart_min_interval=_DURATION,
    global_exit_conditions=list_field(OBJECT),
    audience_at_start=choice_field("current", "future"), fallback_zone=_ZONE,
)  # fmt: skip
_CONDITIONS_TOLD = (
    "filter_object_attributes filter_relationship_attributes object_attribute_triggers "
    "relationship_attribute_triggers"
)
#: What a campaign of the App API tells of its trigger.
_TOLD = LAX.having(
    type=choice_field(*TRIGGERS), state=choice_field(*CAMPAIGN_STATES),
    text="event_name date_attribute", flag="use_customer_timezone",
    trigger_segment_ids=_NUMBERS_OF, filter_segment_ids=_NUMBERS_OF,
    frequency=choice_field("once", "monthly", "yearly"), timezone=_ZONE,
    start_hour=number_field(0, 23, int), start_minutes=number_field(0, 59, int),
    object=f"audience {_CONDITIONS_TOLD}",
)  # fmt: skip
_GOAL = CLOSED.having(
    object="segment event", flag="inverse", within=number_field(0, LONGEST_GOAL, int, float),
    after=choice_field("delivered", "opened", "clicked"),
)  # fmt: skip


# ---- tiles


class Done(NamedTuple):
    """What came of a tile: an outcome and its reason, the path to take, what was sent.

    `until` is when it goes on by itself if it waits (Unix seconds; infinity: when something
    happens); with `rest`, what it has set off goes on with the journey.
    """

    outcome: str
    reason: str = ""
    path: Optional[int] = None
    delivery: Optional[Delivery] = None
    until: Optional[float] = None
    rest: bool = False


class Tile(NamedTuple):
    """A kind of item in a workflow."""

    run: Callable[[Runner, Journey, Node, Json], Done]
    #: Its own fields; None where those of the App API's action may stand.
    fields: Optional[FieldList] = None
    #: Whether it does anything to people, so that exits are looked at before.
    acts: bool = True
    #: How many paths lead out of it, and what they are for; empty for one that goes straight on.
    paths: Callable[[Json], List[str]] = lambda body: []
    #: Whether all paths may be left out, and lead straight on.
    onward: bool = False
    #: The field that holds its conditions.
    conditions: str = ""
    #: The fields that are templates.
    texts: Tuple[str, ...] = ()


class Node(NamedTuple):
    """A tile where it stands in a workflow. Numbers are those of actions; None is the end."""

    id: int
    type: str
    tile: Tile
    body: Json
    next: Optional[int]
    paths: Tuple[Optional[int], ...]
    precondition: Optional[Condition]
    conditions: Tuple[Condition, ...]


_MESSAGE_TILES = ("email", "push", "twilio", "in_app", "whatsapp", "slack", "inbox")


def plain_type(type: Json) -> str:
    """A type of tile without the `_action` that the web app adds."""
    return re.sub(r"_action\Z", "", as_text(type))


def tiles_in(actions: Json) -> Iterator[Json]:
    """All tiles of a workflow, those on paths and the variations of tests included, in order."""
    for action in actions if isinstance(actions, list) else ():
        if isinstance(action, dict):
            yield action
            yield from tiles_in(action.get("variations"))
            for path in action.get("paths") or ():
                yield from tiles_in(path)


class Layout:
    """Reads a workflow: checks each tile, and finds out which one follows which."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.waiting = grammar._replace(begin=operator.attrgetter("since"))
        self.nodes: Dict[int, Node] = {}

    def lay(self, actions: Json, where: str, after: Optional[int]) -> Optional[int]:
        """Lay a path that leads to the tile `after`; gives its first tile.

        Raises ApiError 400 with the place of what is wrong.
        """
        if not isinstance(actions, list):
            raise invalid(f"{where} must be a list of actions, not {kind_of(actions)}", where)
        first = after
        for i in range(len(actions) - 1, -1, -1):
            action = actions[i]
            if action.get("parent_action_id"):  # a translation or variation of another
                continue
            if plain_type(action.get("type")) == "exit" and i < len(actions) - 1:
                place = f"{where}[{i + 1}]"
                raise invalid(f"{place} is never reached: the exit before it ends the path", place)
            first = self.place(action, f"{where}[{i}]", first)
        return first

    def place(self, action: Json, where: str, after: Optional[int]) -> int:
        """Put down one tile, and the paths that lead out of it."""
        type = plain_type(action.get("type", "email"))
        tile = TILES.get(type)
        if tile is None:
            text = f"{where}.type '{action.get('type')}' is no tile; "
            raise invalid(text + suggestion(type, list(TILES)), f"{where}.type")
        if tile.fields is not None:
            tile.fields.read(action, f"{where}.")
        conditions = self._conditions(tile, action, type, where)
        paths = self._paths(tile, action, where, after)
        before = action.get("preconditions")
        precondition = self.compiled(before, f"{where}.preconditions") if before else None
        self.nodes[action["id"]] = Node(
            action["id"], type, tile, action, after, paths, precondition, conditions
        )
        return int(action["id"])

    def compiled(self, spec: Json, where: str, waiting: bool = False) -> Condition:
        """Conditions, where a list means that all of them have to be met."""
        grammar = self.waiting if waiting else self.grammar
        return compile_conditions({"and": spec} if isinstance(spec, list) else spec, where, grammar)

    def _conditions(self, tile: Tile, action: Json, type: str, where: str) -> Tuple[Condition, ...]:
        specs, place = action.get(tile.conditions) or [], f"{where}.{tile.conditions}"
        if tile.conditions == "conditions":  # one set of them
            return (self.compiled(specs, place),) if specs else ()
        pairs = enumerate(specs)
        waiting = type == "conditional_wait"
        return tuple([self.compiled(spec, f"{place}[{i}]", waiting) for i, spec in pairs])

    def _paths(
        self, tile: Tile, action: Json, where: str, after: Optional[int]
    ) -> Tuple[Optional[int], ...]:
        names, given = tile.paths(action), action.get("paths")
        if given is None and tile.onward:
            return (after,) * len(names)
        if not names:
            return ()
        if not isinstance(given, list) or len(given) != len(names):
            text = f"{where}.paths must be {len(names)} lists of actions: {', '.join(names)}"
            raise invalid(text, f"{where}.paths")
        pairs = enumerate(given)
        return tuple([self.lay(path, f"{where}.paths[{i}]", after) for i, path in pairs])


# ---- campaigns that run


def spelt_out(row: Json) -> Json:
    """A campaign with its conditions as objects; answers have some as JSON texts (description)."""
    texts = [name for name in _CONDITIONS_TOLD.split() if row.get(name) and type(row[name]) is str]
    return {**row, **{name: decode_json(row[name].encode()) for name in texts}}


class Plan:
    """A campaign, compiled: who enters, what they go through, when they leave."""

    def __init__(self, workspace: Workspace, row: Json, where: str) -> None:
        """Raises ApiError 400 with the place of what is wrong."""
        self.workspace, self.number, flow = workspace, row["id"], row["_journey"]
        self.row, self.flow, self.where = spelt_out(row), flow, where
        self.trigger_type = TRIGGERS[row["type"]]
        self.layout = Layout(journey_grammar(workspace))
        self.first = self.layout.lay(flow.get("actions", []), f"{where}.actions", None)
        self.nodes = self.layout.nodes
        self.trigger = self._trigger()
        self.filter = self._optional(
            {"and": self._filters()} if self._filters() else None, "filter"
        )
        self.exits = [
            self._own(spec, f"global_exit_conditions[{i}]")
            for i, spec in enumerate(flow.get("global_exit_conditions") or ())
        ]
        self.goal = self._goal(flow.get("goal"))
        self.data_fits = compile_data(
            flow.get("attribute_filters") or {}, f"{where}.attribute_filters", self.layout.grammar
        )
        self.restart = flow.get("restart_mode") or self.trigger_type.restart
        self.interval = float(flow.get("restart_min_interval") or 0)
        #: What a message of it takes for its campaign.
        self.parent = self._parent()
        names = f"customer campaign message snippets delivery_id journey {self.trigger_type.names}"
        #: What its templates can name, and why somebody may be refused.
        self.names = tuple(names.split())
        self.refusals: List[Callable[..., str]] = []
        self.mails: Dict[int, Tuple[Json, Attributes, Mail]] = {}
        self.needs = self._needs()
        self._check_segments()
        #: When time alone lets somebody in or out; for what changes of an object it is.
        self.turns: Tuple[Turns, ...] = ()
        triggers = self.row.get(f"{row['type']}_attribute_triggers")
        self.change = self._optional(triggers, f"{row['type']}_attribute_triggers")
        self.object_fields = fields_in(triggers) if row["type"] == "object" else set()

    @property
    def runs(self) -> bool:
        """Whether people enter now."""
        return bool(self.current["state"] == "running")

    @property
    def current(self) -> Json:
        """The campaign as it stands now; its state may have changed."""
        return self.workspace.shelves["campaigns"].rows[self.number]

    @property
    def is_told(self) -> bool:
        """Whether it is said who enters; a campaign without that has nobody."""
        return any(self.told(name) for name in self.trigger_type.told_by)

    def told(self, name: str) -> Json:
        """A field of the campaign, of the App API's or of ours."""
        return self.row.get(name) or self.flow.get(name)

    @property
    def is_patient(self) -> bool:
        """Whether who does not match the filter may come to do so for a while (docs)."""
        return self.row["type"] in ("event", "form")

    def fits(self, journey: Journey) -> bool:
        """Whether the person of a journey matches the filter."""
        return self.filter is None or self.filter.test(journey)

    def _own(self, spec: Json, name: str) -> Condition:
        return self.layout.compiled(spec, f"{self.where}.{name}")

    def _optional(self, spec: Json, name: str) -> Optional[Condition]:
        return self._own(spec, name) if spec else None

    def _trigger(self) -> Optional[Condition]:
        """The conditions that a segment campaign begins with: all of them (docs)."""
        ids = self.row.get("trigger_segment_ids") or []
        parts = [{"segment": {"id": number}} for number in ids]
        parts += [self.flow["trigger"]] if self.flow.get("trigger") else []
        if self.row["type"] != "segment" or not parts:
            return None
        where = f"{self.where}.trigger"
        if not ids:
            return compile_conditions(parts[0], where, self.workspace.segments.grammar())
        return compile_conditions({"and": parts}, where, self.workspace.segments.grammar())

    def _filters(self) -> List[Json]:
        """What has to be so beside the trigger."""
        ids = self.row.get("filter_segment_ids") or []
        parts = [{"segment": {"id": number}} for number in ids]
        names = ("filter_object_attributes", "filter_relationship_attributes")
        audience = self.row.get("audience") or {}
        parts += [self.row[name] for name in names if self.row.get(name)]
        names = ("person_filters", "relationship_filters")
        parts += [audience[name] for name in names if audience.get(name)]
        return parts + ([self.flow["filter"]] if self.flow.get("filter") else [])

    def _goal(self, spec: Json) -> Optional[Condition]:
        if not spec:
            return None
        where = f"{self.where}.goal"
        _GOAL.read(spec, f"{where}.")
        condition = {name: spec[name] for name in ("segment", "event", "inverse") if name in spec}
        grammar = self.layout.grammar._replace(
            begin=lambda journey: (max(journey.started, journey.goal_seen), journey.born)
        )
        return compile_conditions(condition, where, grammar)

    def _parent(self) -> Json:
        type = self.trigger_type.liquid
        if self.row["type"] == "segment" and self.flow.get("trigger"):
            type = "seg_attr"
        topic = self.flow.get("subscription_topic_id")
        named = {"id": self.number, "name": self.row["name"], "type": type}
        return {**named, "subscription_topic_id": topic}

    def _check_segments(self) -> None:
        """Refuse what nobody can fit; pasted answers of the App API may lack their segments."""
        known = self.workspace.segments.rows
        needs = self.needs | (self.trigger.needs if self.trigger else frozenset())
        missing = {n for kind, n in needs if kind == "segment" and n not in known}
        if not set(self.flow) - {"actions", "_where"}:
            names = ("trigger_segment_ids", "filter_segment_ids")
            missing -= {n for name in names for n in self.row.get(name) or ()}
        if missing:
            text = (
                f"{self.where}: there is no segment {min(missing)}, so that nobody can be in it; "
            )
            raise invalid(text + f"there are {', '.join(map(str, known)) or 'none'}", self.where)

    def _needs(self) -> FrozenSet[Need]:
        """What may move somebody who is inside."""
        parts = [self.filter, self.goal, *self.exits]
        parts += [c for node in self.nodes.values() for c in node.conditions]
        needs = {need for part in parts if part for need in part.needs}
        windows = [n for n in self.nodes.values() if n.type == "delay_time_window"]
        zones = {("attribute", "timezone"), ("attribute", "cio_timezone")} if windows else set()
        return frozenset(all_needs(self.workspace, needs) | zones)


def fields_in(spec: Json) -> Set[str]:
    """The names of all fields that conditions ask for."""
    if isinstance(spec, list):
        return set().union(*map(fields_in, spec))
    if not isinstance(spec, dict):
        return set()
    return fields_in(list(spec.values())) | ({spec["field"]} if "field" in spec else set())


def all_needs(workspace: Workspace, needs: Iterable[Need]) -> Set[Need]:
    """What conditions depend on, with what the segments in them depend on."""
    found: Set[Need] = set()
    more = list(needs)
    while more:
        need = more.pop()
        if need not in found:
            found.add(need)
            more += _segment_study(workspace, need).needs
    return found


def all_turns(workspace: Workspace, condition: Condition) -> Tuple[Turns, ...]:
    """When conditions, and the segments in them, turn by themselves."""
    inside = [need for need in all_needs(workspace, condition.needs) if need[0] == "segment"]
    studies = [_segment_study(workspace, need) for need in inside]
    return sum([study.turns for study in studies], condition.turns)


def _segment_study(workspace: Workspace, need: Need) -> Condition:
    """The conditions of a segment that others depend on; empty for anything else."""
    segment = workspace.segments.rows.get(need[1]) if need[0] == "segment" else None
    if segment is None or not segment.conditions:
        return Condition(lambda subject: False, frozenset(), ())
    where = f"segments[{segment.number}].conditions"
    return compile_conditions(segment.conditions, where, workspace.segments.grammar())


def journey_grammar(workspace: Workspace) -> Grammar:
    """What a journey can be asked; the subject is the journey."""
    base = workspace.segments.grammar()
    member = base.member
    return base._replace(
        kinds=JOURNEY_CONDITIONS,
        member=lambda journey, n: journey.person is not None and member(journey.person, n),
        person=operator.attrgetter("person"),
        render=functools.partial(_render_value, workspace),
    )


def _render_value(workspace: Workspace, journey: Journey, source: str) -> str:
    """The value of a condition that is a template; a broken one is equal to nothing."""
    try:
        now = workspace.clock.now()
        return parse_liquid(source).render(journey_data(workspace, journey), now=now)
    except LiquidError as error:
        log.warning("the condition value %r failed: %s", source, error)
        return "\0"


def journey_data(workspace: Workspace, journey: Journey) -> Json:
    """What the templates of a journey can name beside the message."""
    plan = workspace.beside(Runner).plans[journey.campaign_id]
    data = {name: OF_JOURNEYS[name](journey) for name in plan.names if name in OF_JOURNEYS}
    if journey.person is not None:
        data["customer"] = customer_data(journey.person)
    return data


# ---- who moves journeys


class Runner:
    """Moves journeys from tile to tile, and out when it is time."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.plans: Dict[int, Plan] = {}
        #: What any of them depends on once people are inside, and those who are, by serial number.
        self.needs: Set[Need] = set()
        self.live: Dict[int, List[Journey]] = {}
        #: The journey whose tile is at work, if one is: what follows from it is its doing.
        self.cause: Optional[Journey] = None

    @property
    def limit(self) -> bool:
        """Whether there is a limit for messages."""
        return "message_limit" in self.workspace.journeys.settings

    def plan_of(self, journey: Journey) -> Plan:
        """The campaign that a journey goes through."""
        return self.plans[journey.campaign_id]

    def node_of(self, journey: Journey) -> Optional[Node]:
        """The tile that a journey stands before or waits in; None at the end."""
        position = journey.position
        return None if position is None else self.plan_of(journey).nodes.get(position)

    def since(self, journey: Journey) -> float:
        """When a journey came to the tile where it is."""
        return journey.arrived if journey.waits else self.workspace.clock.now()

    def schedule(self, journey: Journey, when: Optional[float] = None) -> None:
        """Go on with a journey at `when`, Unix seconds, or as the next thing to be done."""
        journey.wake = self.workspace.clock.now() if when is None else when
        self.workspace.agenda.later(journey.wake, wake_journey, journey.serial, journey.wake)

    def act(
        self, journey: Journey, verb: Callable[..., Outcome], who: Identifier, *args: Any
    ) -> Outcome:
        """Do a Track write for a journey; gives what became of it."""
        before, self.cause = self.cause, journey
        try:
            return self.workspace.apply(verb, who, args)
        finally:
            self.cause = before

    # ---- from tile to tile

    def go_on(self, journey: Journey, locked: bool = False) -> None:
        """Go on until the journey has to wait, ends, or something is to be sent first.

        Templates are rendered without the workspace's lock, later if it is `locked` now.
        """
        while self.step(journey, locked):
            pass

    def step(self, journey: Journey, locked: bool = False) -> bool:
        """Do what the next tile says; whether the one after it can be done at once."""
        workspace = self.workspace
        with workspace.lock:
            node = self._ready(journey)
            if node is None:
                return False
            if not node.tile.texts:
                return self._run(journey, node, {})
            if locked:
                self.schedule(journey)
                return False
            texts = {name: node.body[name] for name in node.tile.texts if name in node.body}
            data = journey_data(workspace, journey)
        try:
            texts = render_texts(texts, data, workspace.clock.now())
        except LiquidError as error:
            with workspace.lock:
                return self.done(journey, node, Done("failed", str(error)))
        with workspace.lock:
            return journey.state == "active" and self._run(journey, node, texts)

    def _run(self, journey: Journey, node: Node, texts: Json) -> bool:
        try:
            done = node.tile.run(self, journey, node, texts)
        except ApiError as error:
            done = Done("failed", str(error))
        return self.done(journey, node, done)

    def _ready(self, journey: Journey) -> Optional[Node]:
        """The tile to do now; those whose condition isn't met are skipped (docs)."""
        while journey.state == "active":
            node = self.node_of(journey)
            if node is None:
                self.end(journey, "finished")
                return None
            if journey.waits:
                return node
            if node.tile.acts and self._leaves(journey):
                return None
            if node.tile.acts and journey.activated is None:
                journey.activated = self.workspace.clock.now()
            if node.precondition is None or node.precondition.test(journey):
                return node
            self.done(journey, node, Done("skipped", as_text(node.body["preconditions"])))
        return None

    def done(self, journey: Journey, node: Node, done: Done) -> bool:
        """Write down what came of a tile, and go to the next; whether that can be done now."""
        waited, now = journey.waits, self.workspace.clock.now()
        at = journey.arrived if waited else now
        step = Step(node.id, node.type, at, done.outcome, done.reason, done.path, done.delivery)
        journey.steps = [*(journey.steps[:-1] if waited else journey.steps), step]
        if done.until is not None:
            self._wait(journey, node, done.until)
            return False
        journey.waiting_for, journey.wake = "", None
        if journey.state != "active":
            return False
        onward = done.path is not None and node.paths
        journey.position = node.paths[cast(int, done.path)] if onward else node.next
        if waited and now - at >= 1:
            journey.depth = 0
        if waited and self._leaves(journey):
            return False
        return not done.rest

    def _wait(self, journey: Journey, node: Node, until: float) -> None:
        again = journey.waiting_for == node.type and journey.wake == until
        journey.waiting_for = node.type
        if until == math.inf:
            journey.wake = None
        elif not again:
            self.schedule(journey, until)

    # ---- leaving

    def _leaves(self, journey: Journey) -> bool:
        """Let a journey end if it must not go on; whether it did."""
        reason = self.reason_to_leave(journey)
        if reason:
            self.leave(journey, reason)
        return bool(reason)

    def reason_to_leave(self, journey: Journey) -> str:
        """Which condition takes somebody out, or "". Filters count before the first act, too."""
        plan = self.plan_of(journey)
        for i, condition in enumerate(plan.exits):
            if condition.test(journey):
                return f"global_exit_conditions[{i}]"
        stops = plan.flow.get("exit_on_trigger_or_filter_not_matched", True)
        if (stops or journey.activated is None) and not plan.fits(journey):
            return "filter"
        matched = plan.trigger is None or plan.trigger.test(journey.person)
        return "trigger" if stops and not matched else ""

    def leave(self, journey: Journey, reason: str) -> None:
        """End a journey before its end."""
        self.end(journey, "exited_early" if journey.activated else "never_activated", reason)

    def end(self, journey: Journey, state: str, reason: str = "") -> None:
        """End a journey."""
        node = self.node_of(journey)
        journey.end(self.workspace.clock.now(), state, reason, node.type if node else "")
        live = self.live.get(journey.person.serial, []) if journey.person else []
        if journey in live and self.plan_of(journey).goal is None:
            live.remove(journey)

    # ---- what happens meanwhile

    def look_after(self, people: Iterable[Tuple[Person, Set[Need]]]) -> None:
        """Let what happened to people change their journeys: first who leaves, then who waits."""
        pairs = [
            (journey, self.plan_of(journey))
            for person, needs in people
            for journey in self.live.get(person.serial, ())
            if needs & self.plan_of(journey).needs
        ]
        for journey, plan in pairs:
            self._check_goal(journey, plan)
            for i, condition in enumerate(plan.exits):
                if journey.state == "active" and condition.test(journey):
                    self.leave(journey, f"global_exit_conditions[{i}]")
        for journey, _ in pairs:
            if journey.state == "active" and journey.waiting_for:
                self._look_at_wait(journey)

    def _look_at_wait(self, journey: Journey) -> None:
        """Let somebody go on for whom that was what they waited for."""
        node = self.node_of(journey)
        if journey.waiting_for == IN_FILTER:
            self.pass_filter(journey)
        elif node is not None and node.type in _LIVELY_WAITS:
            self.go_on(journey, locked=True)

    def pass_filter(self, journey: Journey, last: bool = False) -> None:
        """Let somebody in who matches the filter by now; or nevermore, if it was the last try."""
        if self.plan_of(journey).fits(journey):
            journey.waiting_for, journey.wake = "", None
            self.go_on(journey, locked=True)
        elif last:
            self.end(journey, "never_activated", IN_FILTER)

    def wake(self, number: int, when: float) -> None:
        """Go on with a journey that has waited until `when`, unless it has gone on before."""
        with self.workspace.lock:
            journey = self.workspace.journeys.rows[number]
            if journey.state != "active" or journey.wake != when:
                return
            if journey.waiting_for == IN_FILTER:
                self.pass_filter(journey, last=True)
                return
        self.go_on(journey)

    def answered(self, number: int, delivery: Delivery) -> None:
        """Go on with a journey that waits for what became of a webhook."""
        journey = self.workspace.journeys.rows[number]
        if journey.waits and journey.steps[-1].delivery is delivery:
            self.schedule(journey)

    # ---- goals

    def _check_goal(self, journey: Journey, plan: Plan) -> None:
        """Note that somebody has reached the goal, and credit the messages that led there."""
        goal, open_ = plan.goal, journey.state not in ("not_entered", "never_activated")
        if goal is None or not open_ or journey.converted is not None:
            return
        now, state = self.workspace.clock.now(), "segment" in plan.flow["goal"]
        met, seen = goal.test(journey), journey.goal_seen
        journey.goal_seen = now if met else 0.0
        if not met or (state and seen):
            return
        self._credit(journey, plan, now)
        leaves = journey.converted is not None and plan.flow.get("exit_on_goal")
        if leaves and journey.state == "active":
            self.leave(journey, "goal")

    def _credit(self, journey: Journey, plan: Plan, now: float) -> None:
        """Convert every message of a journey whose window is open (inferred)."""
        after = plan.flow["goal"].get("after", "delivered")
        within = plan.flow["goal"].get("within", LONGEST_GOAL)
        for step in journey.steps:
            begin = _window_of(step, after)
            if begin is not None and begin <= now <= begin + within:
                journey.converted = now
                cast_delivery = cast(Delivery, step.delivery)
                if "converted" not in cast_delivery.metrics:
                    self.workspace.deliveries.report(cast_delivery, "converted", int(now))


def _window_of(step: Step, after: str) -> Optional[int]:
    """When the window for conversions of a message began; None if it hasn't."""
    delivery = step.delivery
    if delivery is None or (
        delivery.channel == "webhook" and not delivery.message.get("can_convert")
    ):
        return None
    if delivery.message.get("holdout"):
        return delivery.created
    return delivery.metrics.get(
        after, delivery.metrics.get("sent") if after == "delivered" else None
    )


@chore
def wake_journey(workspace: Workspace, number: int, when: float) -> None:
    """Go on with a journey that has waited until `when`."""
    workspace.beside(Runner).wake(number, when)


def render_texts(value: Json, data: Json, now: float, budget: Optional[Budget] = None) -> Json:
    """A value with all templates in it rendered. Raises LiquidError or TakesTime."""
    budget = budget or budget_now()
    if isinstance(value, str):
        if "{{" not in value and "{%" not in value:
            return value
        return rendered_within(budget, value, data, now)
    if isinstance(value, dict):
        return {name: render_texts(part, data, now, budget) for name, part in value.items()}
    return (
        [render_texts(part, data, now, budget) for part in value]
        if isinstance(value, list)
        else value
    )


# ---- messages of a journey


def new_delivery(
    runner: Runner, journey: Journey, plan: Plan, content: Json
) -> Tuple[Delivery, Mail]:
    """A delivery of a journey, not yet sent."""
    workspace, person = runner.workspace, journey.person
    now, type = workspace.clock.now(), str(content["type"])
    delivery_id = delivery_id_of(now, workspace.count("delivery"), "campaign")
    message, mail = mail_of(plan, content)
    delivery = Delivery(delivery_id, _CHANNELS.get(type, type), message, int(now))
    delivery.person, delivery.customer_id = person, journey.customer_id
    if person is not None:
        delivery.recipient = recipient_of(person, delivery.channel)
    delivery.parents = {"campaign_id": plan.number, "action_id": content["id"]}
    if content.get("parent_action_id"):
        delivery.parents["parent_action_id"] = content["parent_action_id"]
    delivery.journey = journey
    delivery.data, delivery.base_url = journey.data, workspace.address()
    workspace.deliveries.post(delivery)
    return delivery, mail


def mail_of(plan: Plan, content: Json) -> Tuple[Attributes, Mail]:
    """What is to be rendered and sent of an action, made once for everybody who gets it."""
    known, message, mail = plan.mails.get(content["id"], (None, {}, None))
    if known is not content or mail is None:
        unasked = {"send_to_unsubscribed": plan.flow.get("send_to_unsubscribed", False)}
        draft = {"queue_draft": True} if content["sending_state"] == "draft" else {}
        mail = Mail(CAMPAIGNS, plan.parent, {**unasked, **content, **draft}, plan.names)
        message = shown(content)
        plan.mails[content["id"]] = content, message, mail
    return message, mail


def post(runner: Runner, journey: Journey, node: Node, number: int, path: Optional[int]) -> Done:
    """Send the action of this number to the person of a journey."""
    plan, shelf = runner.plan_of(journey), runner.workspace.shelves[CAMPAIGNS.shelf]
    content = shelf.rows[number]
    if content["sending_state"] == "off":
        return Done("skipped", "sending_state off", path)
    if journey.text("language"):
        content = translated(
            shelf.where(_parent=plan.number), content, cast(Person, journey.person)
        )
    delivery, mail = new_delivery(runner, journey, plan, content)
    if content.get("holdout"):  # it goes into a trap, and counts (docs)
        return Done("created", "holdout", path, delivery)
    agenda, now = runner.workspace.agenda, runner.workspace.clock.now()
    agenda.later(now, send_of_journey, journey.serial, delivery, mail, True)
    return Done("created", "", path, delivery, rest=True)


@chore
def send_of_journey(
    workspace: Workspace, number: int, delivery: Delivery, mail: Mail, first: bool
) -> None:
    """Send a message of a journey, once the person may get another one, and go on at once."""
    runner = workspace.beside(Runner)
    wait = _over_the_limit(workspace, number, delivery) if runner.limit else 0
    try:
        if not wait:
            dispatch(workspace, delivery, mail)
        elif wait < math.inf:
            workspace.agenda.later(wait, send_of_journey, number, delivery, mail, False)
    finally:
        if first:
            runner.go_on(workspace.journeys.rows[number])


def _over_the_limit(workspace: Workspace, number: int, delivery: Delivery) -> float:
    """When a message that is too much is to be tried again; 0 if it isn't, infinity for never.

    Who has had enough messages is looked at again as soon as one of them is old enough, until
    the time for that is over (docs).
    """
    limit, now = workspace.journeys.settings["message_limit"], workspace.clock.now()
    if not _is_counted(workspace, delivery) or delivery.person is None:
        return 0
    begin, theirs = now - limit["within"], delivery.person.has.deliveries
    sent = [d.metrics.get("sent", 0) for d in theirs if _is_counted(workspace, d)]
    sent = sorted(when for when in sent if when > begin)
    if len(sent) < limit["limit"]:
        return 0
    last, left = delivery.created + limit.get("retry", 0), "attempted" in delivery.metrics
    gone = workspace.journeys.rows[number].state == "exited_early"
    if now >= last or gone:
        reason = "the journey has ended" if gone else "the message limit is reached"
        workspace.deliveries.report(delivery, "undeliverable", int(now), reason=reason)
        return math.inf
    if not left:
        workspace.deliveries.report(
            delivery, "attempted", int(now), reason="the message limit is reached"
        )
    free = sent[-limit["limit"]] + limit["within"]
    return float(min(max(free, now + 1), last))


def _is_counted(workspace: Workspace, delivery: Delivery) -> bool:
    """Whether a message counts for the limit: of a campaign that uses it, and not in-app (docs)."""
    plan = workspace.beside(Runner).plans.get(delivery.parents.get("campaign_id", 0))
    capped = delivery.message.get("frequency_cap_mode") != "no_cap"
    uses = plan is not None and plan.flow.get("use_message_limits", False)
    return uses and capped and delivery.channel not in ("in_app", "webhook", "slack")


# ---- what the tiles do


def _send_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    return post(runner, journey, node, node.id, None)


def draw(runner: Runner, node: Node, journey: Journey) -> float:
    """A number from 0 to 1 that is always the same for a person at a tile."""
    seed = runner.workspace.journeys.settings.get("random_seed", 0)
    text = f"{seed}:{node.id}:{journey.customer_id or journey.id}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / float(16**13)


def _drawn(runner: Runner, node: Node, journey: Journey, shares: Sequence[float]) -> int:
    """Which of the shares somebody is in; `assign` decides for whom it names."""
    person, assigned = journey.person, node.body.get("assign") or {}
    names = (person.id, person.email, person.cio_id) if person else ()
    pinned = [assigned[name] for name in names if name in assigned]
    if pinned:
        return int(pinned[0])
    point, upto = draw(runner, node, journey) * sum(shares), 0.0
    for i, share in enumerate(shares):
        upto += share
        if point < upto:
            return i
    return len(shares) - 1


def _split_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    variations = node.body["variations"]
    shares = node.body.get("allocations") or [1] * len(variations)
    index = _drawn(runner, node, journey, shares)
    return post(runner, journey, node, variations[index]["id"], index)


def _language_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    """The variation in the person's language, else the first one."""
    languages = [row.get("language", "") for row in node.body["variations"]]
    wanted = journey.text("language")
    index = languages.index(wanted) if wanted in languages else 0
    return post(runner, journey, node, node.body["variations"][index]["id"], index)


def _cohort_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    return Done("branched", path=_drawn(runner, node, journey, node.body["cohorts"]))


def _branch_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    """The first path whose conditions are met, else the last; no conditions are never met."""
    met = [i for i, condition in enumerate(node.conditions) if condition.test(journey)]
    return Done("branched", path=met[0] if met else len(node.paths) - 1)


def _pause(runner: Runner, until: float) -> Done:
    waits = until > runner.workspace.clock.now()
    return Done("waiting", until=until) if waits else Done("waited")


def _delay_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    return _pause(runner, runner.since(journey) + node.body["delay"])


def _random_delay_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    least, most = node.body["min_delay"], node.body["max_delay"]
    delay = int(least + draw(runner, node, journey) * (most - least))
    return _pause(runner, runner.since(journey) + delay)


def zone_of(person: Subject, name: str, fallback: str) -> tzinfo:
    """A zone by name, or the person's: `timezone`, else `cio_timezone`, else the fallback."""
    names = [name]
    if name == "customer_time_zone":
        names = [person.text("timezone") or "", person.text("cio_timezone") or "", fallback]
    for each in filter(None, names):
        with contextlib.suppress(ApiError):
            return zone_named(each)
    return timezone.utc


def _window_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    body = node.body
    zone = zone_of(journey, body.get("zone", "UTC"), body.get("fallback_zone", "UTC"))
    days = {plain_day(day) for day in body.get("days") or _DAYS}
    times = body.get("start_time", "00:00"), body.get("end_time", "24:00")
    return _pause(runner, next_opening(runner.workspace.clock.now(), zone, days, *times))


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def plain_day(day: Json) -> int:
    """The number of a day of the week, Monday is 0: from its name, or the web app's number."""
    return (day - 1) % 7 if isinstance(day, int) else _DAYS.index(day[:3].lower())


def next_opening(now: float, zone: tzinfo, days: Set[int], start: str, end: str) -> float:
    """When a time window is open next, which may be now. Unix seconds.

    A time of day that daylight saving leaves out is as much later (inferred).
    """
    today = moment_of(now, zone).date()
    begin, finish = (int(text[:2]) * 60 + int(text[3:]) for text in (start, end))
    finish += 1440 if finish <= begin else 0  # past midnight
    for ahead in range(-1, 9):
        day = today + timedelta(days=ahead)
        opens, closes = (local_moment(day, minutes, zone) for minutes in (begin, finish))
        if day.weekday() in days and now < closes:
            return max(now, opens)
    return now


def local_moment(day: date, minutes: int, zone: tzinfo) -> float:
    """When so many minutes of a day have gone by on the clocks of a zone. Unix seconds."""
    moment = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)
    return moment.replace(tzinfo=zone).timestamp()


def _wait_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    """The path of the first condition that is met, else the last once the time is up (docs)."""
    now, since = runner.workspace.clock.now(), runner.since(journey)
    if not journey.waits:  # the events that count are those from now on
        journey.steps = [*journey.steps, Step(node.id, node.type, now, "waiting")]
        journey.heard = len(runner.workspace.events.rows)
    for i, condition in enumerate(node.conditions):
        if condition.test(journey):
            return Done("matched", path=i)
    end = since + (node.body.get("delay") or math.inf)
    if now >= end:
        return Done("timed_out", path=len(node.conditions))
    turns = [condition.next_turn(journey, now) for condition in node.conditions]
    return Done("waiting", until=min([end, *(turn for turn in turns if turn is not None)]))


#: Waits that something may end or move.
_LIVELY_WAITS = ("conditional_wait", "delay_time_window")
IN_FILTER = "filter"


def whom(journey: Journey, texts: Json) -> Identifier:
    """Whom a tile is about: whom its `person` names, else the journey's own. Raises ApiError."""
    named = texts.get("person")
    if named:
        return one_identifier(named, tuple(named), "person")
    if journey.person is None:
        raise invalid("this campaign has no person: name one in person", "person")
    return "cio_id", journey.person.cio_id


def remember(journey: Journey, name: str, value: Json) -> None:
    """Set an attribute of a journey; what is too much is ignored (docs)."""
    known = journey.attributes
    full = name not in known and len(known) >= MAX_JOURNEY_ATTRIBUTES
    if not (full or _longer(name, 128) or _longer(as_text(value), 100 * 1024)):
        journey.attributes = {**known, name: value}


def _update_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    give(runner, journey, texts, texts["attributes"])
    return Done("updated")


def give(runner: Runner, journey: Journey, texts: Json, attributes: Json) -> None:
    """Set attributes, of the journey where their names begin so, else of the person."""
    own: Json = {}
    for name, value in attributes.items():
        scope, _, rest = name.partition(".")
        if scope == "journey" and rest:
            remember(journey, rest, value)
        else:
            own[rest if scope == "customer" and rest else name] = value
    if own:
        checked = checked_attributes(own, "attributes")
        runner.act(journey, runner.workspace.people.identify, whom(journey, texts), checked)


def _event_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    event = event_of("event", {"name": texts["event_name"], "data": texts.get("data") or {}})
    runner.act(journey, runner.workspace.events.track, whom(journey, texts), event)
    return Done("created")


def _segment_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    number, workspace = node.body["segment_id"], runner.workspace
    adds = node.body.get("operation", "add") == "add"
    verb = workspace.segments.add_to_segment if adds else workspace.segments.remove_from_segment
    runner.act(journey, verb, ("segment", str(number)), number, [whom(journey, {})])
    return Done("updated")


def _collection_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    """Rows of a collection into an attribute of the journey, those that fit a filter."""
    workspace, body = runner.workspace, node.body
    found = [row for row in workspace.shelves["collections"].rows.values()
             if body.get("collection") in (row["id"], row.get("name"))]  # fmt: skip
    if not found:
        told: Json = {"collection": body.get("collection")}
        workspace.note("failed_query_collection", journey.person, lambda: told)
        return Done("failed", f"there is no collection {body.get('collection')!r}")
    grammar = runner.plan_of(journey).layout.grammar
    fits = compile_data(body.get("filter") or {}, "filter", grammar)
    rows = [row for row in found[0]["_content"] if fits((journey, row))]
    remember(journey, body["attribute"], rows[: body.get("limit", len(rows))])
    return Done("updated")


def _batch_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    """Attributes or an event for everybody who fits a filter, or for nobody if they are many."""
    workspace, where = runner.workspace, "filter"
    wanted = compile_conditions(texts["filter"], where, workspace.segments.grammar()).test
    people = [person for person in workspace.people if wanted(person)]
    if len(people) > MAX_BATCH_UPDATE:
        told: Json = {"people": len(people), "limit": MAX_BATCH_UPDATE}
        workspace.note("failed_batch_update", journey.person, lambda: told)
        return Done("failed", f"{len(people)} people match, more than {MAX_BATCH_UPDATE}")
    for person in people:
        who = {"person": {"cio_id": person.cio_id}}
        if texts.get("attributes"):
            give(runner, journey, who, texts["attributes"])
        if texts.get("event_name"):
            _event_tile(runner, journey, node, {**texts, **who})
    return Done("updated")


def _exit_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    runner.end(journey, "finished")
    return Done("exited")


# ---- the tiles as a table

_TIME_OF_DAY = pattern_field(r"([01]\d|2[0-3]):[0-5]\d|24:00", 'a time of day, as in "09:00"')
_CONDITIONS = typed_field(dict, list)
_ANY_TILE = CLOSED.having(
    whole="id created updated parent_action_id", text="type name", preconditions=_CONDITIONS
)
_WHOM = object_field(CLOSED.having(any="id", text="email cio_id"))
_PATHS = list_field(list_field(OBJECT))


def _waits_for(body: Json) -> List[str]:
    names = [f"condition {i + 1}" for i in range(len(body.get("multi_conditions") or ()))]
    return names + (["time is up"] if body.get("delay") else [])


def _split_for(body: Json) -> List[str]:
    count = len(body.get("multi_conditions") or ())
    return [*[f"condition {i + 1}" for i in range(count)], "none of them"]


def _cohort_for(body: Json) -> List[str]:
    names = body.get("cohort_names") or []
    return [str(names[i]) if i < len(names) else f"cohort {i + 1}"
            for i in range(len(body.get("cohorts") or ()))]  # fmt: skip


def _thousand(value: Json) -> str:
    fits = isinstance(value, list) and 0 < len(value) <= 20 and all(type(n) is int for n in value)
    return "" if fits and sum(value) == 1000 else (
        "must be 1 to 20 whole numbers, tenths of a percent, that add up to 1000")  # fmt: skip


def _window_day(value: Json) -> str:
    named = isinstance(value, str) and value[:3].lower() in _DAYS
    fits = named or (type(value) is int and 0 <= value <= 7)
    return "" if fits else f"must be one of: {', '.join(_DAYS)}"


_MESSAGE_TILE = Tile(_send_tile)
_WINDOW_ZONE = read_field(
    "a zone", lambda value, name: value == "customer_time_zone" or zone_named(as_text(value))
)
#: What can stand in a workflow, by the web app's name (observed).
TILES: Dict[str, Tile] = {
    **dict.fromkeys(_MESSAGE_TILES, _MESSAGE_TILE),
    "split_randomized": Tile(_split_tile, _ANY_TILE.having(
        "variations", variations=list_field(OBJECT, 2), allocations=list_field(_DURATION, 2),
        object="assign", any="split_state")),
    "multi_lang_branch": Tile(_language_tile, _ANY_TILE.having(
        "variations", variations=list_field(OBJECT, 1))),
    "attribute_update": Tile(_update_tile, _ANY_TILE.having(
        "attributes", object="attributes", person=_WHOM), texts=("attributes", "person")),
    "create_event": Tile(_event_tile, _ANY_TILE.having(
        "event_name", filled="event_name", object="data", person=_WHOM),
        texts=("event_name", "data", "person")),
    "static_seg_update": Tile(_segment_tile, _ANY_TILE.having(
        "segment_id", whole="segment_id", operation=choice_field("add", "remove"))),
    "collection_query": Tile(_collection_tile, _ANY_TILE.having(
        "collection attribute", word="collection", object="filter", filled="attribute",
        limit=number_field(0, MAX_NUMBER, int))),
    "batch_update": Tile(_batch_tile, _ANY_TILE.having(
        "filter", object="filter attributes data", filled="event_name"),
        texts=("filter", "attributes", "event_name", "data")),
    "delay_seconds": Tile(_delay_tile, _ANY_TILE.having("delay", delay=_DURATION), acts=False),
    "randomized_delay": Tile(_random_delay_tile, _ANY_TILE.having(
        "min_delay max_delay", min_delay=_DURATION, max_delay=_DURATION), acts=False),
    "delay_time_window": Tile(_window_tile, _ANY_TILE.having(
        start_time=_TIME_OF_DAY, end_time=_TIME_OF_DAY, fallback_zone=_ZONE,
        days=list_field(Check("a day", _window_day), 1), zone=_WINDOW_ZONE), acts=False),
    "conditional_wait": Tile(_wait_tile, _ANY_TILE.having(
        multi_conditions=list_field(_CONDITIONS), delay=_DURATION, paths=_PATHS,
        exit_type=choice_field("never", "continue")),
        acts=False, paths=_waits_for, onward=True, conditions="multi_conditions"),
    "conditional_branch": Tile(_branch_tile, _ANY_TILE.having(
        "paths", conditions=_CONDITIONS, paths=_PATHS),
        acts=False, paths=lambda body: ["true", "false"], conditions="conditions"),
    "multi_split_branch": Tile(_branch_tile, _ANY_TILE.having(
        "multi_conditions paths", multi_conditions=list_field(_CONDITIONS), paths=_PATHS),
        acts=False, paths=_split_for, conditions="multi_conditions"),
    "random_cohort_branch": Tile(_cohort_tile, _ANY_TILE.having(
        "cohorts paths", cohorts=Check("shares", _thousand), cohort_names=list_field(TEXT),
        object="assign", paths=_PATHS), acts=False, paths=_cohort_for),
    "exit": Tile(_exit_tile, _ANY_TILE, acts=False),
}  # fmt: skip


# ---- who enters


class Gate:
    """Lets people into campaigns, and remembers who nearly got in."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.runner = workspace.beside(Runner)
        self.by_event: Dict[str, List[Plan]] = {}
        self.by_need: Dict[Need, List[Plan]] = {}
        #: Plans by type and by what begins them: a form, a webhook, a type of objects.
        self.by_key: Dict[Tuple[str, str], List[Plan]] = {}
        self.dates: List[Plan] = []
        #: What any plan depends on, and which of it has changed for whom since it was looked at.
        self.watched: Set[Need] = set()
        self.names: Tuple[str, ...] = ()
        self.touched: Dict[int, Tuple[Person, Set[Need], int]] = {}
        self.entering: List[Tuple[Plan, Person, Event, int]] = []
        self.related: List[Tuple[Plan, ObjectKey, Optional[Person], int]] = []
        self.settling = self.called = False
        #: When it has been planned to look at somebody again, by campaign and serial number.
        self.planned: Dict[Tuple[int, int], float] = {}

    def add(self, plan: Plan) -> None:
        """Watch for what leads into a campaign."""
        self.runner.plans[plan.number] = plan
        self.runner.needs |= plan.needs
        self.watched |= plan.needs
        plan.refusals = [refused for applies, refused in REFUSALS if applies(plan)]
        row, type = plan.row, plan.row["type"]
        if plan.is_told:
            if type == "event":
                self.by_event.setdefault(row["event_name"], []).append(plan)
                self.watched.add(("event", row["event_name"]))
            elif type == "date":
                self.dates.append(plan)
                zones = ("timezone", "cio_timezone")
                self.watched |= {("attribute", name) for name in (row["date_attribute"], *zones)}
            elif type != "segment":
                name = plan.trigger_type.told_by[0]
                self.by_key.setdefault((type, as_text(plan.told(name))), []).append(plan)
            elif plan.trigger is not None:
                self._watch_segment(plan, plan.trigger)
        attributes = [name for kind, name in self.watched if kind == "attribute"]
        self.names = tuple(sorted(set(attributes)))

    def _watch_segment(self, plan: Plan, trigger: Condition) -> None:
        plan.turns = all_turns(self.workspace, trigger)
        needs = {*all_needs(self.workspace, trigger.needs), NEWCOMER}
        for need in needs:
            self.by_need.setdefault(need, []).append(plan)
        self.watched |= needs

    def listen(self) -> None:
        """Hear of everything that happens in the workspace, as far as it matters to anybody."""
        kinds, join = {kind for kind, _ in self.watched}, self.workspace.occasions.join
        join(settled=self.settle, merged=self.heard_merge, gone=self.heard_end)
        join(refused=self.heard_refusal, submitted=self.heard_form)
        if "event" in kinds:
            join(happened=self.heard_event)
        if kinds & {"attribute", "person"}:
            join(changed=self.heard_change)
        if "segment" in kinds:
            join(joined=self.heard_membership, left=self.heard_membership)
        if "message" in kinds:
            join(reported=self.heard_report)
        join(related=self.heard_relationship, thing=self.heard_thing)

    @property
    def depth(self) -> int:
        """How many journeys have set off each other if one has set off what happens now."""
        cause = self.runner.cause
        return cause.depth + 1 if cause else 0

    # ---- what happens

    def touch(self, person: Person, need: Need) -> None:
        """Note that something has changed for a person that somebody may ask for."""
        if need in self.watched:
            self.touched.setdefault(person.serial, (person, set(), self.depth))[1].add(need)
            self._settle_soon()

    def _settle_soon(self) -> None:
        """See to it that what has happened has its consequences, also outside of Track writes."""
        if not self.called:
            self.called = True
            self.workspace.agenda.later(self.workspace.clock.now(), settle_journeys)

    def heard_event(self, event: Event, person: Person) -> None:
        """Somebody has done something."""
        for plan in self.by_event.get(event.name, ()):
            self.entering.append((plan, person, event, self.depth))
        if ("event", event.name) in self.runner.needs or ("event", event.name) in self.by_need:
            self.touch(person, ("event", event.name))

    def heard_change(self, person: Person, old: Attributes) -> None:
        """Somebody's attributes have changed, or one of their identifiers."""
        new = person.attributes
        if not old:
            self.touch(person, NEWCOMER)
        for name in ("id", "phone") if old is new else self.names:
            if old is new or old.get(name) != new.get(name):
                self.touch(person, ("attribute", name))

    def heard_merge(self, person: Person, other: Person) -> None:
        """Somebody has got all that another one had."""
        self.touched[person.serial] = (person, {*self.watched}, 0)
        live = self.runner.live
        live.setdefault(person.serial, []).extend(live.pop(other.serial, ()))

    def heard_end(self, person: Person) -> None:
        """Somebody is deleted."""
        self.runner.live.pop(person.serial, None)

    def heard_membership(self, person: Person, number: int) -> None:
        """Somebody has been put into a manual segment, or taken out."""
        self.touch(person, ("segment", number))

    def heard_report(
        self, delivery: Delivery, metric: str, when: int, first: bool, fact: Json
    ) -> None:
        """Something has happened to a message."""
        if delivery.person is not None:
            self.touch(delivery.person, ("message", metric))

    def heard_relationship(self, person: Person, key: ObjectKey, change: str) -> None:
        """Somebody has been related to an object, or parted, or the relationship has changed."""
        self.touch(person, ("object", ""))
        for plan in self.by_key.get(("relationship", key[0]), ()) if change != "delete" else ():
            self.related.append((plan, key, person, self.depth))

    def heard_thing(self, thing: Thing, old: Attributes) -> None:
        """An object's attributes have changed."""
        for person in thing.people.values():
            self.touch(person, ("object", ""))
        for plan in self.by_key.get(("object", thing.key[0]), ()):
            names = plan.object_fields or {**old, **thing.attributes}
            if any(old.get(name) != thing.attributes.get(name) for name in names):
                self.related.append((plan, thing.key, None, self.depth))

    def heard_refusal(self, who: Identifier, args: Sequence[Any]) -> None:
        """Somebody is suppressed who else would have entered."""
        for event in args:
            for plan in self.by_event.get(event.name, ()) if isinstance(event, Event) else ():
                turn_away(self.workspace, plan, SUPPRESSED.text, who[1], event)

    def heard_form(self, form_id: str, data: Json, who: Identifier) -> None:
        """A form has been submitted, with all that this changes."""
        with self.workspace.lock:
            person = self.workspace.people.find(who)
            for plan in self.by_key.get(("form", form_id), ()) if person else ():
                self.enter(plan, person, data)

    # ---- what follows

    def settle(self) -> None:
        """After a write: first who leaves, then who has waited, then who enters."""
        if self.settling or not (self.touched or self.entering or self.related):
            return
        self.settling, self.called = True, False
        try:
            while self.touched or self.entering or self.related:
                self._settle_once()
        finally:
            self.settling = False

    def _settle_once(self) -> None:
        touched, entering, related = self.touched, self.entering, self.related
        self.touched, self.entering, self.related = {}, [], []
        known, objects = self.workspace.people, self.workspace.objects.rows
        people = [row for row in touched.values() if row[0] in known]
        if people:
            self.runner.look_after([row[:2] for row in people])
            self._enter_touched(people)
        for plan, person, event, depth in entering:
            if person in known:
                self.enter(plan, person, event.data, depth, event)
        for plan, key, cause, depth in related:
            if key in objects:
                enter_related(self, plan, objects[key], cause, depth)

    def _enter_touched(self, people: List[Tuple[Person, Set[Need], int]]) -> None:
        for person, needs, depth in people:
            plans = {plan.number: plan for need in needs for plan in self.by_need.get(need, ())}
            for number in sorted(plans):
                self.look_at(plans[number], person, depth)
            for plan in self.dates:
                self.plan_date(plan, person, self.workspace.clock.now())

    def look_at(self, plan: Plan, person: Person, depth: int = 0) -> None:
        """Let somebody in who matches a segment campaign, now or when the time comes."""
        known = self.workspace.journeys.matching.setdefault(plan.number, set())
        matched = cast(Condition, plan.trigger).test(person)
        if matched and person.serial not in known:
            known.add(person.serial)
            self.enter(plan, person, {}, depth)
        elif not matched:
            known.discard(person.serial)
        now = self.workspace.clock.now()
        times = [when for turn in plan.turns for when in turn(person) if when > now]
        if times:
            self._plan(min(times), look_again, plan, person)

    def _plan(self, when: float, chore: Callable[..., Any], plan: Plan, person: Person) -> None:
        key = plan.number, person.serial
        if self.planned.get(key) != when:
            self.planned[key] = when
            self.workspace.agenda.later(when, chore, *key, when)

    def plan_date(self, plan: Plan, person: Person, after: float) -> None:
        """Plan when a date campaign begins for somebody."""
        when = next_date(plan, person, after)
        if when is not None:
            self._plan(when, begin_on_date, plan, person)

    def enter(
        self,
        plan: Plan,
        person: Optional[Person],
        data: Json,
        depth: int = 0,
        event: Optional[Event] = None,
        key: Optional[ObjectKey] = None,
    ) -> None:
        """Begin a journey, or write down why not."""
        workspace, reason = self.workspace, ""
        journey = Journey(plan.number, person, data, event)
        journey.started, journey.object_key = workspace.clock.now(), key
        journey.serial, journey.born = len(workspace.journeys.rows), len(workspace.events.rows)
        journey.depth = depth
        for refused in plan.refusals:
            reason = reason or refused(self, plan, journey)
        workspace.journeys.rows.append(journey)
        if person is not None:
            person.own().journeys.append(journey)
        if reason:
            journey.state, journey.reason, journey.ended = "not_entered", reason, journey.started
        else:
            self._begin(plan, journey)

    def _begin(self, plan: Plan, journey: Journey) -> None:
        journey.position = plan.first
        if journey.person is not None:
            self.runner.live.setdefault(journey.person.serial, []).append(journey)
        if plan.goal is not None and "segment" in plan.flow["goal"] and plan.goal.test(journey):
            journey.goal_seen = journey.started
        if plan.filter is not None and plan.is_patient and not plan.fits(journey):
            journey.waiting_for = IN_FILTER
            self.runner.schedule(journey, journey.started + FILTER_PATIENCE)
            return
        if plan.restart == "interval" and plan.row["type"] == "segment":
            when = journey.started + plan.interval
            self.workspace.agenda.later(
                when, enter_again, plan.number, cast(Person, journey.person).serial
            )
        self.runner.go_on(journey, locked=True)


#: That somebody is new here: people match what they lack, too.
NEWCOMER = ("person", "new")


def _not_running(gate: Gate, plan: Plan, journey: Journey) -> str:
    return "" if plan.runs else f"the campaign is {plan.current['state']}"


def _too_old(gate: Gate, plan: Plan, journey: Journey) -> str:
    event = journey.event
    late = event is not None and event.when < journey.started - OLDEST_TRIGGER
    return "timestamp older than 72 hours" if late else ""


def _in_circles(gate: Gate, plan: Plan, journey: Journey) -> str:
    if journey.depth <= MAX_CHAIN:
        return ""
    text = f"{MAX_CHAIN} journeys have set off each other in one instant"
    log.warning("campaign %d goes in circles: %s", plan.number, text)
    return text


def _unfitting_data(gate: Gate, plan: Plan, journey: Journey) -> str:
    return "" if plan.data_fits((journey, journey.data)) else "attribute_filters"


def _too_often(gate: Gate, plan: Plan, journey: Journey) -> str:
    """The frequency of a campaign; who was turned away has not been in it."""
    person = cast(Person, journey.person)
    away = ("not_entered", "never_activated")
    mine = (one for one in reversed(person.has.journeys) if one.campaign_id == plan.number)
    before = next((one for one in mine if one.state not in away), None)
    if before is None:
        return ""
    if plan.restart == "once":
        return "restart_mode once"
    if journey.started - before.started < plan.interval:
        return "restart_min_interval"
    still = plan.row["type"] == "segment" and before.state == "active"
    return "already in this campaign" if still else ""


def _waits_already(gate: Gate, plan: Plan, journey: Journey) -> str:
    """Only the first event of somebody who does not match the filter is tried again (docs)."""
    live = gate.runner.live.get(cast(Person, journey.person).serial, ())
    first = not any(j.waiting_for == IN_FILTER for j in live if j.campaign_id == plan.number)
    return "" if first or plan.fits(journey) else IN_FILTER


def _exits_at_once(gate: Gate, plan: Plan, journey: Journey) -> str:
    met = [i for i, condition in enumerate(plan.exits) if condition.test(journey)]
    return f"global_exit_conditions[{met[0]}]" if met else ""


def _not_fitting(gate: Gate, plan: Plan, journey: Journey) -> str:
    return "" if plan.fits(journey) else IN_FILTER


Refusal = Callable[[Gate, Plan, Journey], str]
#: Why somebody does not enter after all, in the order in which it is looked at, and to which
#: campaigns that applies.
REFUSALS: Tuple[Tuple[Callable[[Plan], Any], Refusal], ...] = (
    (lambda plan: True, _not_running),
    (lambda plan: plan.row["type"] == "event", _too_old),
    (lambda plan: True, _in_circles),
    (lambda plan: plan.flow.get("attribute_filters"), _unfitting_data),
    (lambda plan: plan.restart == "once" or plan.interval or plan.row["type"] == "segment",
     _too_often),
    (lambda plan: plan.filter and plan.is_patient, _waits_already),
    (lambda plan: plan.exits, _exits_at_once),
    (lambda plan: plan.filter and not plan.is_patient and plan.row["type"] != "segment",
     _not_fitting),
)  # fmt: skip


# ---- by segment, by date, by object, by webhook


@chore
def settle_journeys(workspace: Workspace) -> None:
    """Let what has happened outside of Track writes have its consequences."""
    gate = workspace.beside(Gate)
    gate.called = False
    with workspace.lock:
        gate.settle()


@chore
def look_again(workspace: Workspace, number: int, serial: int, when: float) -> None:
    """See whether time alone has let somebody into a segment campaign, or out."""
    gate = workspace.beside(Gate)
    with workspace.lock:
        person, plan = workspace.people.at(serial), gate.runner.plans.get(number)
        gate.planned.pop((number, serial), None)
        if person is not None and plan is not None:
            gate.look_at(plan, person)


@chore
def enter_again(workspace: Workspace, number: int, serial: int) -> None:
    """Let somebody in once more who still matches, after the interval of a campaign."""
    gate = workspace.beside(Gate)
    with workspace.lock:
        person, plan = workspace.people.at(serial), gate.runner.plans.get(number)
        if person is not None and plan and serial in workspace.journeys.matching.get(number, ()):
            gate.enter(plan, person, {})


@chore
def begin_on_date(workspace: Workspace, number: int, serial: int, when: float) -> None:
    """Begin a date campaign for somebody whose date it still is."""
    gate = workspace.beside(Gate)
    with workspace.lock:
        person, plan = workspace.people.at(serial), gate.runner.plans.get(number)
        if person is None or plan is None or next_date(plan, person, when) != when:
            return
        begun = [one for one in person.has.journeys if one.campaign_id == number]
        if not begun or begun[-1].started < when:
            gate.enter(plan, person, {})
        gate.plan_date(plan, person, when + 1)


def next_date(plan: Plan, person: Person, after: float) -> Optional[float]:
    """When a date campaign begins for somebody next, from `after` on (Unix seconds).

    Monthly and yearly ones go on from the date itself; the 29th to 31st are the last of the month
    where it has no such day (inferred). None for an attribute that is no date.
    """
    row, moment = plan.row, time_meant(person.text(plan.row["date_attribute"]))
    if moment is None or abs(moment) > MAX_DATE:
        return None
    own = row.get("use_customer_timezone") is True
    fallback = plan.flow.get("fallback_zone") or row.get("timezone") or "UTC"
    zone = zone_of(person, "customer_time_zone" if own else fallback, fallback)
    minutes = row.get("start_hour", 0) * 60 + row.get("start_minutes", 0)
    lead = timedelta(days=plan.flow.get("lead_days", 0))
    first = moment_of(moment, zone).date()
    for day in _dates_of(first, row.get("frequency", "once"), after):
        with contextlib.suppress(OverflowError, ValueError):
            when = local_moment(day - lead, minutes, zone)
            if when >= after:
                return when
    return None


def _dates_of(first: date, frequency: str, after: float) -> Iterator[date]:
    """The days of a date, from about `after` on."""
    if frequency == "once":
        yield first
        return
    months = 12 if frequency == "yearly" else 1
    now = moment_of(after)
    gone = (now.year - first.year) * 12 + now.month - first.month
    begin = max(0, gone // months - 1)
    for step in range(begin, begin + 4 + 24 // months):
        number = first.year * 12 + first.month - 1 + step * months
        year, month = number // 12, number % 12 + 1
        if year > 9999:
            return
        end = (date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)).day
        yield date(year, month, min(first.day, end))


def enter_related(
    gate: Gate, plan: Plan, thing: Thing, person: Optional[Person], depth: int
) -> None:
    """Let in who belongs to an object that has changed, or to which somebody came."""
    candidate = Journey(plan.number, person, {}, None)
    candidate.object_key = thing.key
    if plan.change is not None and not plan.change.test(candidate):
        return
    audience = (plan.row.get("audience") or {}).get("type", 1 if person is None else 0)
    people = list(thing.people.values())
    if person is not None and audience == 0:
        people = [person]
    if len(people) > MAX_RELATED:
        told = {"object_id": thing.key[1], "people": len(people), "limit": MAX_RELATED}
        gate.workspace.note("failed_object_journeys", None, lambda: told)
        turn_away(gate.workspace, plan, f"more than {MAX_RELATED} people")
        return
    for each in people:
        data = related_data(gate.workspace, thing, each, person)
        gate.enter(plan, each, data, depth, None, thing.key)


def turn_away(
    workspace: Workspace,
    plan: Plan,
    reason: str,
    who: Optional[str] = None,
    event: Optional[Event] = None,
) -> None:
    """Write down that nobody, or somebody who isn't here, has nearly entered."""
    journey = Journey(plan.number, None, event.data if event else {}, event)
    journey.started = journey.ended = workspace.clock.now()
    journey.serial, journey.customer_id = len(workspace.journeys.rows), who
    journey.state, journey.reason = "not_entered", reason
    workspace.journeys.rows.append(journey)


def related_data(
    workspace: Workspace, thing: Thing, person: Person, cause: Optional[Person]
) -> Json:
    """The `trigger` of an object's campaign: the object, the relationship, whose it was (docs)."""
    types = workspace.shelves["object_types"].rows
    row = types.get(thing.key[0]) or types.get(int(thing.key[0]) if thing.key[0].isdigit() else 0)
    slug = (row or {}).get("singular_slug") or f"object_type_{thing.key[0]}"
    named = {**thing.attributes, "object_id": thing.key[1]}
    about = cause or person
    relationship = about.has.relationships.get(thing.key, {})
    return {slug: named, "relationship": relationship, "customer": customer_data(about)}


def receive_webhook(workspace: Workspace, token: str, body: Json) -> bool:
    """Begin the campaigns of an incoming webhook, without a person; False if there are none."""
    gate = workspace.beside(Gate)
    with workspace.lock:
        plans = gate.by_key.get(("webhook", str(int(token, 16))), ())
        for plan in plans:
            workspace.note("webhook_event", None, lambda: body)
            gate.enter(plan, None, body)
    return bool(plans)


# ---- campaigns begin and end


def attach(workspace: Workspace, restored: bool = False) -> None:
    """Let the campaigns of a workspace run.

    Those out of a snapshot go on as they were, those of a seed look at who is there.
    """
    rows = [row for row in workspace.shelves["campaigns"].rows.values() if "_journey" in row]
    if not rows:
        return
    gate = workspace.beside(Gate)
    with workspace.lock:
        for row in rows if restored else ():
            gate.add(Plan(gate.workspace, row, row["_journey"]["_where"]))
        for journey in workspace.journeys.rows:
            if journey.person is not None and (journey.state == "active" or journey.activated):
                gate.runner.live.setdefault(journey.person.serial, []).append(journey)
        gate.listen()
        for plan in () if restored else list(gate.runner.plans.values()):
            begin_campaign(workspace, plan, plan.flow.get("audience_at_start", "future"))


def begin_campaign(workspace: Workspace, plan: Plan, audience: str) -> None:
    """Look at who matches a campaign that starts; only the `current` ones enter at once."""
    gate = workspace.beside(Gate)
    if plan.row["type"] == "date":
        for person in workspace.people:
            gate.plan_date(plan, person, workspace.clock.now())
    if plan.trigger is None:
        return
    known = workspace.journeys.matching[plan.number] = set()
    for person in workspace.people:
        if audience == "future" and plan.trigger.test(person):
            known.add(person.serial)
        gate.look_at(plan, person)


def change_campaign(
    workspace: Workspace, number: int, state: str, journeys: str, audience: str
) -> Json:
    """Start or stop a campaign; those inside `finish` or `exit`, those who match enter or don't."""
    runner, shelf = workspace.beside(Runner), workspace.shelves["campaigns"]
    before, plan = shelf.rows[number]["state"], runner.plans.get(number)
    goes_on = state == "stopped" and journeys == "finish"
    row = shelf.change(number, {"state": state, "active": state == "running" or goes_on})
    for journey in workspace.journeys.rows if state != "running" and journeys == "exit" else ():
        if journey.campaign_id == number and journey.state == "active":
            runner.leave(journey, f"the campaign was {state}")
    if plan is not None and state == "running" and before != "running":
        begin_campaign(workspace, plan, audience)
    return row


#: What counts of a journey, in the period in which it began (reference).
JOURNEY_METRICS = (
    "started", "activated", "messaged", "converted", "finished", "exited_early", "never_activated",
)  # fmt: skip


def seeded_facts(deliveries: Iterable[Delivery]) -> List[Tuple[str, float]]:
    """What counts of journeys that nothing tells of but messages: one for each person."""
    begins: Dict[Optional[str], Tuple[float, Set[str]]] = {}
    for delivery in deliveries:
        _, happened = begins.setdefault(delivery.customer_id, (delivery.created, set()))
        happened.update(delivery.metrics)
    names = {"started": "created", "activated": "created", "messaged": "sent",
             "converted": "converted"}  # fmt: skip
    rows = begins.values()
    return [(n, begin) for begin, done in rows for n, metric in names.items() if metric in done]


def journey_facts(journey: Journey) -> Iterator[Tuple[str, float]]:
    """What counts of a journey, and when it began."""
    if journey.state == "not_entered":
        return
    acted = any(step.delivery or step.outcome in ("updated", "created") for step in journey.steps)
    facts = {
        "started": True,
        "activated": journey.activated is not None,
        "messaged": acted,
        "converted": journey.converted is not None,
        journey.state: True,
    }
    yield from ((name, journey.started) for name, so in facts.items() if so)


# ======================================================================================
# ==== §15 Webhooks
# ======================================================================================

_CHANNEL_EVENTS = {
    "email": "drafted attempted sent delivered opened clicked converted unsubscribed bounced "
    "dropped deferred failed undeliverable spammed",
    "push": "drafted attempted sent delivered opened clicked converted bounced dropped failed "
    "undeliverable",
    "sms": "drafted attempted sent delivered clicked converted bounced dropped failed "
    "undeliverable replied",
    "whatsapp": "drafted attempted sent delivered opened clicked converted bounced dropped failed "
    "undeliverable replied",
    "in_app": "drafted attempted sent opened clicked converted failed undeliverable",
    "slack": "drafted attempted sent clicked converted failed undeliverable",
    "webhook": "drafted attempted sent clicked converted failed undeliverable",
}
#: What a reporting webhook may ask for (reference).
WEBHOOK_EVENTS = (
    "customer_subscribed", "customer_unsubscribed", "customer_subscription_preferences_changed",
    "cio_subscription_preferences_changed",
    *(f"{channel}_{event}" for channel, text in _CHANNEL_EVENTS.items() for event in text.split()),
)  # fmt: skip

#: How long an endpoint may take to answer, in seconds, and how long from the first attempt an
#: event is tried (reference).
WEBHOOK_TIMEOUT = 4.0
WEBHOOK_LIFE = 7 * 86400.0
#: The first retry waits an hour after these, and after what `is_slow_error` knows (reference).
_SLOW_STATUSES = {400, 401, 402, 403, 404, 405, 410, 429, 500, 502, 521}
_SLOW_RETRY, _QUICK_RETRY, _SLOWEST_RETRY = 3600.0, 10.0, 86400.0

#: What Customer.io reports about, by the channel of a message (reference).
OBJECT_TYPES = {
    name: name for name in ("email", "push", "sms", "whatsapp", "in_app", "slack", "webhook")
}
#: What a report about a delivery has beside the common keys, by channel and metric; "" stands for
#: all other metrics (reference).
_TEXT_REPORT = {
    "": "recipient",
    "drafted": "",
    **dict.fromkeys(("attempted", "failed", "undeliverable"), "failure_message"),
    **dict.fromkeys(("bounced", "dropped"), "recipient failure_message"),
    "clicked": "recipient href link_id",
    "replied": "recipient to inbound_event_id",
}
REPORT_KEYS: Dict[str, Dict[str, str]] = {
    "email": {
        "": "recipient subject",
        "attempted": "failure_message",
        "failed": "subject failure_message",
        **dict.fromkeys(
            ("bounced", "dropped", "undeliverable"), "recipient subject failure_message"
        ),
        "opened": "recipient subject proxied prefetched synthetic",
        "clicked": "recipient subject href link_id machine",
    },
    "push": {
        **_TEXT_REPORT,
        **dict.fromkeys(("", "bounced", "dropped"), "recipients"),
        "clicked": "recipients href link_id",
    },
    "in_app": {**_TEXT_REPORT, "opened": "", "clicked": "recipient href link_id tracked_response"},
}


def reported_person(workspace: Workspace, person: Optional[Person], id: str, email: str) -> Json:
    """Whom a report is about; an ID-only workspace knows people by id alone (reference)."""
    named = {"id": id or None}
    if "email" in workspace.people.kinds:
        named.update({"email": email or None, "cio_id": person.cio_id if person else None})
    return {"customer_id": id, "identifiers": named}


def reported_parents(delivery: Delivery) -> Json:
    """What a delivery is part of; a transactional one names no content (reference)."""
    transactional = TRANSACTIONAL.key in delivery.parents
    parents = without(delivery.parents, ("content_id",)) if transactional else delivery.parents
    return {**parents, **delivery.origin}


def report_data(workspace: Workspace, note: Note) -> Json:
    """The `data` of a report about a delivery (reference)."""
    delivery, metric, fact = note.delivery, note.metric, note.fact
    link = next(iter(delivery.tracked_links()), {"id": 0, "href": ""})
    known = {
        "recipient": delivery.recipient,
        "subject": delivery.rendered.get("subject") or "",
        "failure_message": fact.get("reason") or "",
        "recipients": _reported_devices(delivery, metric, fact),
        **dict.fromkeys(("proxied", "prefetched", "synthetic", "machine"), False),
        "href": link["href"],
        "link_id": link["id"],
        "tracked_response": "",
        "to": "",
        "inbound_event_id": "",
        **fact,
    }
    names = REPORT_KEYS.get(delivery.channel, _TEXT_REPORT)
    return {
        **reported_person(workspace, note.person, note.id, note.email),
        "delivery_id": delivery.delivery_id,
        **reported_parents(delivery),
        **{name: known[name] for name in names.get(metric, names[""]).split()},
    }


def _reported_devices(delivery: Delivery, metric: str, fact: Json) -> List[Json]:
    """The devices of a push: the one that a client tells of, or all that it was sent to."""
    named, addressed = device_named_by(fact), delivery.addressed()
    more = {"failure_message": fact.get("reason") or ""} if metric in ("bounced", "dropped") else {}
    rows = {token: {"device_platform": platform} for token, platform in addressed.items()}
    if named:
        rows = {named: rows.get(named, {})}
    return [{"device_id": token, **row, **more} for token, row in rows.items()]


def body_content(delivery: Delivery) -> Json:
    """What joins the report of a sent message where "body content" is wanted (reference)."""
    rendered = delivery.rendered
    content = push_payload(delivery) if delivery.channel == "push" else rendered.get("body", "")
    headers = rendered.get("headers")
    return {"content": content, **({"headers": headers} if headers else {})}


def push_payload(delivery: Delivery) -> str:
    """The payload of a push as text; nobody documents what it looks like (inferred)."""
    given, rendered = delivery.message, delivery.rendered
    parts = {
        "title": rendered.get("subject"),
        "body": rendered.get("body"),
        "link": given.get("link"),
        "image": given.get("image_url"),
        "custom_data": given.get("custom_data"),
    }
    own = given.get("custom_payload")
    return as_text(own or {name: value for name, value in parts.items() if value})


def reports_of(workspace: Workspace) -> Deque[Report]:
    """The newest reports, oldest first; made when somebody wants them. Under the lock."""
    reports, notes = workspace.reports, workspace.notes
    while notes:
        reports.append(_report_of(workspace, notes.popleft()))
    return reports


def _report_of(workspace: Workspace, note: Note) -> Report:
    delivery, event_id = note.delivery, ulid(note.at, note.number)
    kind, data = OBJECT_TYPES[delivery.channel], report_data(workspace, note)
    report = Report(event_id, kind, note.metric, note.when, data)
    report.content = body_content(delivery) if note.metric == "sent" else {}
    return report


def what_comes_of(answer: HTTPResponse) -> str:
    """The beginning of an answer's body, as far as it comes."""
    from http.client import HTTPException

    try:
        return answer.read(65536).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return ""


# ---- webhooks as tiles

#: How often one that fails is tried again, and after how many seconds, doubled each time: eleven
#: times in about an hour (docs; the steps are inferred).
CALL_RETRIES, CALL_RETRY = 11, 2.0
#: How long an endpoint may take, in seconds (docs).
CALL_TIMEOUT = 16.0
CALL_METHODS = ("get", "post", "put", "delete", "patch")


def _webhook_tile(runner: Runner, journey: Journey, node: Node, texts: Json) -> Done:
    """Call an endpoint, and go on once it has answered, or failed to, for the first time."""
    if journey.waits:
        return Done("created", delivery=journey.steps[-1].delivery)
    plan, workspace = runner.plan_of(journey), runner.workspace
    content = workspace.shelves[CAMPAIGNS.shelf].rows[node.id]
    if content["sending_state"] == "off":
        return Done("skipped", "sending_state off")
    delivery, mail = new_delivery(runner, journey, plan, content)
    now = workspace.clock.now()
    if content["sending_state"] == "draft":
        workspace.deliveries.report(delivery, "drafted", int(now))
        return Done("created", delivery=delivery)
    workspace.agenda.later(now, call_webhook, journey.serial, delivery, mail)
    return Done("waiting", delivery=delivery, until=math.inf)


@chore
def call_webhook(workspace: Workspace, number: int, delivery: Delivery, mail: Mail) -> None:
    """Render the request of a webhook, and have it sent."""
    data = template_data(workspace, delivery, mail, as_text(mail.content))
    try:
        rendered = webhook_request(mail.content, data, workspace.clock.now())
    except (LiquidError, ApiError, TypeError, KeyError) as error:
        with workspace.lock:
            workspace.deliveries.report(delivery, "failed", workspace.seconds(), reason=str(error))
            workspace.beside(Runner).answered(number, delivery)
        return
    with workspace.lock:
        delivery.rendered, delivery.recipient = rendered, rendered["url"]
    call_again(workspace, number, delivery, 1)


def webhook_request(content: Json, data: Json, now: float) -> Json:
    """The request that a webhook makes. Raises LiquidError, or ApiError for what is no request."""
    method = str(content.get("request_method") or content.get("method") or "post").lower()
    pairs = header_pairs(content.get("headers"))
    rendered = render_texts({"url": content["url"], "body": content.get("body") or ""}, data, now)
    if URL.wrong(rendered["url"]):
        raise invalid(f"url {URL.wrong(rendered['url'])}: {rendered['url']!r:.200}", "url")
    return {
        "method": method.upper(),
        "headers": {name: render_texts(value, data, now) for name, value in pairs},
        **rendered,
    }


@chore
def call_again(workspace: Workspace, number: int, delivery: Delivery, attempt: int) -> None:
    """Have a webhook's request sent, for the first time or once more."""
    for tell in workspace.occasions.called:
        tell(number, delivery, attempt)


@chore
def webhook_answered(
    workspace: Workspace, number: int, delivery: Delivery, attempt: int, status: int, text: str
) -> None:
    """Take an answer to a webhook, or what went wrong if the status is 0."""
    runner, journey = workspace.beside(Runner), workspace.journeys.rows[number]
    good, now = 200 <= status < 300, workspace.seconds()
    values = _response_values(runner, journey, delivery, text) if good else {}
    reason = f"the endpoint answered {status}" if status else text
    again = (status in (0, 408, 429) or status >= 500) and attempt <= CALL_RETRIES
    with workspace.lock:
        if good:
            workspace.deliveries.report(delivery, "sent", now)
            give(runner, journey, {}, values)
        elif not again:
            workspace.deliveries.report(delivery, "failed", now, reason=reason)
        elif attempt == 1:
            workspace.deliveries.report(delivery, "attempted", now, reason=reason)
        if not good and again:
            when = workspace.clock.now() + CALL_RETRY * 2 ** (attempt - 1)
            workspace.agenda.later(when, call_again, number, delivery, attempt + 1)
        runner.answered(number, delivery)


def _response_values(runner: Runner, journey: Journey, delivery: Delivery, text: str) -> Json:
    """What the webhook's `response` rows make of an answer, by name of the attribute."""
    plan = runner.plans.get(journey.campaign_id)
    node = plan.nodes.get(delivery.parents["action_id"]) if plan else None
    rows = node.body.get("response") if node else None
    if not rows:
        return {}
    try:
        answer = decode_json(text.encode())
    except ApiError:
        answer = {}
    with runner.workspace.lock:
        data = {**journey_data(runner.workspace, journey), "response": answer}
    values, budget = {}, Budget()
    for row in rows:
        with contextlib.suppress(LiquidError):
            values[row["attribute"]] = parse_liquid(row["value"]).render(
                data, now=runner.workspace.clock.now(), budget=budget
            )
    return values


TILES["webhook"] = Tile(_webhook_tile)


def call_once_more(workspace: Workspace) -> None:
    """Call the endpoints that had not answered yet when a snapshot was made."""
    due = {chore.args[1] for _, chore in workspace.clock.pending if chore.name in _CALLING}
    for journey in workspace.journeys.rows:
        delivery = journey.steps[-1].delivery if journey.waits else None
        if delivery is not None and delivery.rendered and delivery not in due:
            now = workspace.clock.now()
            workspace.agenda.later(now, call_again, journey.serial, delivery, 1)


_CALLING = ("call_webhook", "call_again", "webhook_answered")


# ---- sending


class Outbox:
    """Reports to endpoints: one queue for each, in order, from one background thread.

    The thread lives while there is something to send now; what has to wait for another try
    waits on the workspace's clock. No request waits for any of this.
    """

    def __init__(self, workspace: Workspace, signing_key: str) -> None:
        self.workspace, self.signing_key = workspace, signing_key
        self._queues, self._resting = workspace.unreported, workspace.resting
        self._changed = threading.Condition()
        self._thread: Optional[threading.Thread] = None
        self._deadline: Optional[Deadline] = None
        self._closed = False
        #: How often anything has been sent.
        self.tried = 0
        #: Webhooks of journeys to be called: journey, delivery, the how manieth attempt.
        self._calls: Deque[Tuple[int, Delivery, int]] = deque()

    # ---- what is to be reported

    def heard(self, delivery: Delivery, metric: str, when: int, first: bool, fact: Json) -> None:
        """Take note that something happened to a delivery, and tell whoever asked for it."""
        kind, workspace, person = (
            OBJECT_TYPES.get(delivery.channel),
            self.workspace,
            delivery.person,
        )
        if kind is None or metric == "created":
            return
        number, at = workspace.count("report"), workspace.clock.now()
        id, email = (person.id, person.email) if person else ("", "")
        workspace.notes.append(Note(number, at, delivery, metric, when, fact, person, id, email))
        # The devices of a push that was not sent may be others later.
        if kind == "push" or workspace.shelves["reporting_webhooks"].rows:
            self._tell(reports_of(workspace)[-1], kind, first)

    def heard_of(
        self, person: Person, metric: str, cause: Optional[Delivery], content: str = ""
    ) -> None:
        """Take note that a person subscribed, unsubscribed or changed preferences."""
        workspace = self.workspace
        event_id = ulid(workspace.clock.now(), workspace.count("report"))
        about = reported_person(workspace, person, person.id, person.email)
        data = {**about, "email_address": person.email or None}
        # The channel of the message that led to it, if one did (reference).
        kind = OBJECT_TYPES.get(cause.channel if cause else "", "customer")
        report = Report(event_id, kind, metric, workspace.seconds(), data)
        report.content = {"content": content} if content else {}
        reports_of(workspace).append(report)
        self._tell(report, "customer", True)

    def _tell(self, report: Report, group: str, first: bool) -> None:
        """Queue a report for whoever asked for this metric in a group of events."""
        for endpoint in self.workspace.shelves["reporting_webhooks"].rows.values():
            if not endpoint["disabled"] and self._wanted(endpoint, group, report.metric, first):
                self._enqueue(endpoint["id"], report)

    def _wanted(self, endpoint: Json, group: str, metric: str, first: bool) -> bool:
        # Without full resolution only the first open and click of a delivery count (reference).
        if not first and metric in ("opened", "clicked") and not endpoint["full_resolution"]:
            return False
        names = {f"{group}_{metric}", metric, metric.replace("cio_", "customer_")}
        return bool(names.intersection(endpoint["events"]))

    # ---- sending

    def _enqueue(self, endpoint_id: int, report: Report) -> None:
        with self._changed:
            self._queues.setdefault(endpoint_id, deque()).append(report)
            self._work()

    def _work(self) -> None:
        wanted = self._calls or self._next() is not None
        if self._thread is None and not self._closed and wanted:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.name = "customerio-fake-webhooks"
            self._thread.start()

    def _next(self) -> Optional[int]:
        ready = (id for id, queue in self._queues.items() if queue and id not in self._resting)
        return next(ready, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                calls = self._calls if not self._closed else ()
                call = calls.popleft() if calls else None
                endpoint_id = None if self._closed or call else self._next()
                if endpoint_id is None and call is None:
                    self._thread = None
                    self._changed.notify_all()
                    return
            if call is not None:
                self._call(*call)
            else:
                self._try_next(cast(int, endpoint_id))

    def _try_next(self, endpoint_id: int) -> None:
        report = self._queues[endpoint_id][0]
        try:
            self._try(endpoint_id, report)
        except Exception as error:  # lose this report rather than all that follow
            log.error("lost webhook %s: %r", report.event_id, error)
            with self._changed:
                self._queues[endpoint_id].popleft()

    def call(self, number: int, delivery: Delivery, attempt: int) -> None:
        """Call an endpoint for a journey; what it answers goes back there as work that is due."""
        with self._changed:
            self._calls.append((number, delivery, attempt))
            self._work()

    def _call(self, number: int, delivery: Delivery, attempt: int) -> None:
        rendered, workspace = delivery.rendered, self.workspace
        body = rendered["body"].encode("utf-8", "replace")
        headers = {**self._signed(body), "X-CIO-Idempotency-Key": delivery.delivery_id}
        headers.update(rendered["headers"])
        try:
            answer = self._exchange(
                rendered["url"], headers, body, rendered["method"], CALL_TIMEOUT
            )
            result = answer["status"], answer["response"]
        except (OSError, ValueError) as error:
            result = 0, str(error) or type(error).__name__
        with workspace.lock:
            now = workspace.clock.now()
            workspace.agenda.later(now, webhook_answered, number, delivery, attempt, *result)

    def _try(self, endpoint_id: int, report: Report) -> None:
        """Send the head of a queue; on failure the queue rests until the retry (reference)."""
        endpoint = self.workspace.shelves["reporting_webhooks"].rows.get(endpoint_id)
        attempt: Json = {"error": "endpoint deleted"}
        slow = False
        if endpoint is not None:
            attempt, slow = self._post(endpoint, report)
        status = attempt.get("status", 0)
        now = self.workspace.clock.now()
        before = [row["at"] for row in report.attempts if row.get("endpoint_id") == endpoint_id]
        delay = min((_SLOW_RETRY if slow else _QUICK_RETRY) * 2 ** len(before), _SLOWEST_RETRY)
        over = endpoint is None or 200 <= status < 300
        # Not from `report.timestamp`: what is reported may be long past (inferred).
        over = over or now + delay > min([now, *before]) + WEBHOOK_LIFE
        if not 200 <= status < 300:
            log.warning(
                "webhook %s failed: %s", report.event_id, attempt.get("error") or f"status {status}"
            )
        self.tried += 1
        row = {"endpoint_id": endpoint_id, "at": now, **attempt}
        row["retry_at"] = None if over else now + delay
        # In this order: whoever reports holds the workspace's lock and then asks for ours.
        with self.workspace.lock, self._changed:
            report.attempts = [*report.attempts, row]
            if over:
                self._queues[endpoint_id].popleft()
            else:
                self._resting.add(endpoint_id)
                self.workspace.agenda.later(now + delay, try_again, endpoint_id)

    def wake(self, endpoint_id: int) -> None:
        """Go on with an endpoint that has rested."""
        with self._changed:
            self._resting.discard(endpoint_id)
            self._work()

    def signature(self, timestamp: str, body: bytes) -> str:
        """Hex HMAC-SHA256 over `v0:<timestamp>:<body>` (reference)."""
        text = f"v0:{timestamp}:".encode() + body
        return hmac.new(self.signing_key.encode(), text, "sha256").hexdigest()

    def _signed(self, body: bytes) -> Dict[str, str]:
        timestamp = str(self.workspace.seconds())
        return {
            "Content-Type": "application/json",
            "User-Agent": "Customer.io Web Hooks (customerio_fake)",
            "X-CIO-Timestamp": timestamp,
            "X-CIO-Signature": self.signature(timestamp, body),
        }

    def _post(self, endpoint: Json, report: Report) -> Tuple[Json, bool]:
        """Make one attempt; gives request and response or error, and if a retry waits an hour."""
        data = {**report.data, **(report.content if endpoint["with_content"] else {})}
        body = compact({**report.head(), "data": data})
        headers = self._signed(body)
        request = {"url": unsecret(endpoint["endpoint"].encode()).decode(), "headers": headers}
        request["body"] = body.decode()
        try:
            answer = self._exchange(endpoint["endpoint"], headers, body, "POST", WEBHOOK_TIMEOUT)
            return {"request": request, **answer}, answer["status"] in _SLOW_STATUSES
        except (OSError, ValueError) as error:
            text = str(error) or type(error).__name__
            return {"request": request, "error": text}, is_slow_error(error)

    def _exchange(
        self,
        url: str,
        headers: Dict[str, str],
        body: bytes,
        method: str,
        timeout: float,
    ) -> Json:
        """Make a request and read the answer; follows no redirect. Raises OSError or ValueError.

        TimeoutError if the head of the answer is not there in time, however slowly it comes.
        """
        self._deadline = Deadline(timeout)
        try:
            with asked(url, method, headers, body, self._deadline) as answer:
                return {"status": answer.status, "response": what_comes_of(answer)}
        finally:
            self._deadline.cancel()
            self._deadline = None

    # ---- waiting and ending

    def flush(self, timeout: float = 10.0) -> int:
        """Wait, at most `timeout` seconds, until all is sent that can be sent now.

        Returns how many reports still wait, for a retry or because time is up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None, timeout)
            return self.waiting

    @property
    def waiting(self) -> int:
        """How many reports have yet to be sent, or sent again."""
        return sum(map(len, list(self._queues.values())))

    def open(self) -> None:
        """Send again after a `close`."""
        with self._changed:
            self._closed = False
            self._work()

    def close(self, wait: bool = True) -> None:
        """Stop sending; what is under way is cut off. `wait` until the thread has ended."""
        with self._changed:
            self._closed, thread = True, self._thread
            if self._deadline is not None:
                self._deadline.hang_up()
        if wait and thread is not None:
            thread.join(WEBHOOK_TIMEOUT)


@chore
def try_again(workspace: Workspace, endpoint_id: int) -> None:
    """Go on with an endpoint that has rested."""
    for tell in workspace.occasions.rested:
        tell(endpoint_id)


def is_slow_error(error: Exception) -> bool:
    """Whether a retry waits an hour after it: EOF, refused, reset, DNS, certificate (reference)."""
    import ssl

    slow = (ConnectionError, socket.gaierror, ssl.SSLEOFError, ssl.SSLCertVerificationError)
    return isinstance(error, slow)


# ======================================================================================
# ==== §16 Exports and imports
# ======================================================================================


# ---- exports

#: How long a download link works: 15 minutes (reference).
LINK_LIFE = 900


def download_link(workspace: Workspace, export: Export, base_url: str) -> str:
    """A link to an export's file, on the host that the client knows us by."""
    expires = workspace.seconds() + LINK_LIFE
    signature = link_signature(workspace, export.number, expires)
    return f"{base_url}/v1/exports/{export.number}/file?expires={expires}&signature={signature}"


def export_people(workspace: Workspace, filters: Json) -> Export:
    """Write everybody whom a filter selects into a CSV."""
    wanted = compile_filter(filters, "filters", workspace.segments.is_member)
    with workspace.lock:
        people = list(workspace.people)
    rows = [person.all_attributes() for person in people if wanted(person)]
    names = sorted({name for row in rows for name in row} - {"cio_id", "id", "email"})
    return _finish_export(workspace, "customers", ["cio_id", "id", "email", *names], rows)


#: What messages may be asked for by (reference).
MESSAGE_METRICS = (
    "attempted", "sent", "delivered", "opened", "clicked", "converted", "bounced", "spammed",
    "unsubscribed", "dropped", "failed", "undeliverable",
)  # fmt: skip
_EXPORT_METRICS = ("created", *MESSAGE_METRICS)
#: Messages are listed this far back, unless the call says otherwise: 6 months (reference).
MESSAGE_WINDOW = 183 * 86400
#: Which deliveries an export may be about, and what that is called in a send (reference).
DELIVERY_PARENTS = ("newsletter_id", "campaign_id", "transactional_message_id", "action_id")
EXPORT_FIELDS = LAX.having(
    number=f"{' '.join(DELIVERY_PARENTS)} start end template_id", attributes=list_field(ANY_TEXT),
    metric=choice_field(*_EXPORT_METRICS, ""), flag="drafts",
)  # fmt: skip


def export_deliveries(workspace: Workspace, order: Json) -> Export:
    """Write the deliveries of one newsletter, campaign, … into a CSV."""
    parent = next((name for name in DELIVERY_PARENTS if order.get(name) is not None), None)
    if parent is None:
        raise required("newsletter_id", f"one of {', '.join(DELIVERY_PARENTS)}")
    wanted, names = _export_filter(order, workspace.seconds()), order.get("attributes") or []
    number = whole_number(order[parent], parent) or 0
    keys = ("campaign_id", "broadcast_id") if parent == "campaign_id" else (parent,)
    with workspace.lock:
        sent = [
            delivery
            for key in keys
            for delivery in workspace.deliveries.sent.get((key, number), ())
        ]
    found = [delivery for delivery in sent if wanted(delivery)]
    rows = [_delivery_row(delivery, names) for delivery in found]
    head = ["delivery_id", "customer_id", "type", "recipient", "subject", *DELIVERY_PARENTS]
    metrics = sorted({name for delivery in found for name in delivery.metrics})
    return _finish_export(workspace, "deliveries", [*head, *metrics, *names], rows)


def _export_filter(order: Json, now: int) -> Callable[[Delivery], bool]:
    """What an order asks of a delivery; drafts only if it says so. Raises ApiError 400."""
    metric, drafts = order.get("metric") or None, order.get("drafts")
    template = whole_number(order.get("template_id"), "template_id")
    start, end = (whole_number(order.get(name), name) or 0 for name in ("start", "end"))
    # Without a range the last 6 months, else 12 at most (reference).
    longest, latest = MESSAGE_WINDOW * (2 if start or end else 1), end or now
    earliest = max(start, min(latest, now) - longest)
    return lambda delivery: (
        earliest <= delivery.created <= latest
        and metric in (None, *delivery.metrics)
        and template in (None, delivery.template_id)
        and (drafts or not delivery.is_draft)
    )


def _delivery_row(delivery: Delivery, names: Sequence[str]) -> Json:
    attributes = delivery.person.all_attributes() if delivery.person else {}
    return {
        **{name: attributes.get(name) for name in names},
        **{name: delivery.parents.get(name) for name in DELIVERY_PARENTS},
        **delivery.metrics,
        "delivery_id": delivery.delivery_id,
        "customer_id": delivery.customer_id,
        "type": delivery.channel,
        "recipient": delivery.recipient,
        "subject": delivery.rendered.get("subject") or delivery.message.get("subject"),
    }


def _finish_export(workspace: Workspace, type: str, names: List[str], rows: List[Json]) -> Export:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if (v := row.get(name)) is None else as_text(v) for name in names])
    with workspace.lock:
        number, now = workspace.count("export"), workspace.seconds()
        content = text.getvalue().encode("utf-8", "replace")
        export = Export(number, type, len(rows), content, now)
        workspace.exports[number] = export
    return export


# ---- imports


def csv_rows(text: bytes, name: str) -> List[Dict[str, str]]:
    """The rows of a CSV with a head line. Raises ApiError 400 if there are too many."""
    if text.count(b"\n") > MAX_LINES:
        raise invalid(f"{name} has more than {MAX_LINES} lines", name)
    reader = csv.DictReader(io.StringIO(text.decode("utf-8-sig", "replace"), newline=""))
    return [{k: v or "" for k, v in row.items() if k} for row in reader]


_IMPORT = FieldList().having(
    "name type data_file_url", filled="name", text="description", data_file_url=URL,
    type=choice_field("people", "event", "object", "relationship"),
)  # fmt: skip


def _import_fields(needed: str, *scopes: str, **more: Check) -> FieldList:
    # `people_to_process` is the older name (reference).
    own = dict.fromkeys(("data_to_process", "people_to_process"), choice_field(*scopes))
    return _IMPORT.having(needed, **own, **more)


_SCOPES = ("all", "only_new", "only_existing")
_ID_OR_EMAIL = choice_field("id", "email")
_TYPE_ID = typed_field(int, str)
#: The fields of an import of each type (reference).
_IMPORTS = {
    "people": _import_fields("identifier", *_SCOPES, identifier=_ID_OR_EMAIL),
    "event": _import_fields("identifier", "all", "only_existing", identifier=_ID_OR_EMAIL),
    "object": _import_fields("object_type_id", *_SCOPES, object_type_id=_TYPE_ID),
    "relationship": _import_fields(
        "identifier", *_SCOPES, identifier=choice_field("id", "email", "cio_id"),
        object_type_id=_TYPE_ID,
    ),
}  # fmt: skip


def import_fields(body: Json) -> FieldList:
    """What an import's body may have, by its type."""
    type = body.get("type")
    return _IMPORTS.get(type, _IMPORT) if isinstance(type, str) else _IMPORT


def checked_import(body: Json) -> Json:
    """What an import's body orders. Raises ApiError 400."""
    order = import_fields(body).read(body)
    if body["type"] in ("object", "relationship"):
        order["object_type_id"] = object_type(order.get("object_type_id", "1"), "object_type_id")
    scope = order.pop("people_to_process", "all")
    return {"data_to_process": scope, "description": "", **order}


def _import_facts(order: Json) -> Json:
    """What an answer repeats of an order, by its type (reference)."""
    type = order["type"]
    hidden = ("data_file_url", *(() if type == "object" else ("object_type_id",)))
    facts = {name: value for name, value in order.items() if name not in hidden}
    if type in ("people", "event"):
        facts["people_to_process"] = order["data_to_process"]
    return facts


def _unknown_object_type(workspace: Workspace, order: Json) -> str:
    """Why objects can't be imported: once types are seeded, there are no others; else ""."""
    seeded = workspace.shelves["object_types"].rows.values()
    known = {*(as_text(row["id"]) for row in seeded), *(key[0] for key in workspace.objects.rows)}
    if order["type"] != "object" or not seeded or order["object_type_id"] in known:
        return ""
    return "The specified Object Type does not exist."  # reference


def run_import(
    workspace: Workspace, order: Json, rows: List[Dict[str, str]], base_url: str
) -> Json:
    """Import rows and say what came of it; lines with errors go into an export."""
    errors = [import_row(workspace, order, row) for row in rows]
    bad = [{"line": i + 2, "error": error} for i, error in enumerate(errors) if error]
    counts = {"rows_to_import": len(rows), "rows_imported": len(rows) - len(bad)}
    if not bad:
        return {"state": "imported", **counts}
    # Exports are of customers or deliveries, there is no third type (reference).
    export = _finish_export(workspace, "customers", ["line", "error"], bad)
    link = f"{base_url}/v1/exports/{export.number}/download"
    export_ids = {"error_export_id": export.number, "error_download_url": link}
    return {"state": "imported", **counts, **export_ids}


def import_row(workspace: Workspace, order: Json, row: Dict[str, str]) -> str:
    """Import one line; gives what was wrong with it, or ""."""
    try:
        return _IMPORTERS[order["type"]](workspace, order, row).text
    except ApiError as error:
        return error.message


def _not_wanted(order: Json, known: Any) -> bool:
    """Whether an order wants nothing of a line, by what is known of its person or object."""
    return bool(order["data_to_process"] == ("only_new" if known else "only_existing"))


def _person_in(order: Json, row: Dict[str, str]) -> Identifier:
    """Whom a line is about, by the order's identifier. Raises ApiError 400."""
    column = order["identifier"]
    return column, identifier_text(row.get(column, ""), column)


def _import_people(workspace: Workspace, order: Json, row: Dict[str, str]) -> Outcome:
    who = _person_in(order, row)
    if _not_wanted(order, workspace.people.find(who)):
        return DONE
    return workspace.ingest(workspace.people.identify, who, checked_attributes(dict(row), "row"))


def _import_event(workspace: Workspace, order: Json, row: Dict[str, str]) -> Outcome:
    who = _person_in(order, row)
    if _not_wanted(order, workspace.people.find(who)):
        return DONE
    own = ("id", "email", "cio_id", "name", "timestamp")
    data = {name: value for name, value in row.items() if name not in own}
    body = {"name": row.get("name"), "timestamp": row.get("timestamp") or None, "data": data}
    return workspace.ingest(workspace.events.track, who, event_of("", body))


def _import_object(workspace: Workspace, order: Json, row: Dict[str, str]) -> Outcome:
    ref = (order["object_type_id"], identifier_text(row.get("object_id", ""), "object_id"))
    if _not_wanted(order, workspace.objects.find(ref)):
        return DONE
    own = {name: value for name, value in row.items() if name != "object_id"}
    who = ("object_id", ref[1])
    return workspace.ingest(
        workspace.objects.identify_object, who, ref, checked_attributes(own, "row")
    )


def _import_relationship(workspace: Workspace, order: Json, row: Dict[str, str]) -> Outcome:
    who, name = _person_in(order, row), "object_type_id"
    type_id = object_type(row.get(name) or order[name], name)
    ref = (type_id, identifier_text(row.get("object_id", ""), "object_id"))
    person = workspace.people.find(who)
    if _not_wanted(order, person and ref in person.has.relationships):
        return DONE
    own = ("object_type_id", "object_id", "id", "email", "cio_id")
    extra = {name: value for name, value in row.items() if name not in own}
    return workspace.ingest(workspace.objects.add_relationship, who, ref, extra)


_IMPORTERS: Dict[str, Callable[[Workspace, Json, Dict[str, str]], Outcome]] = {
    "people": _import_people,
    "event": _import_event,
    "object": _import_object,
    "relationship": _import_relationship,
}


# ======================================================================================
# ==== §17 Seeding
# ======================================================================================


def seed_workspace(workspace: Workspace, document: Json) -> None:
    """Fill an empty workspace. Raises ApiError 400 naming the path of what is wrong.

    Each key holds a list of rows in the form in which the App API gives them back, so that
    answers of the real API can be pasted in. The caller throws the workspace away on an error.
    """
    if not isinstance(document, dict):
        raise invalid(f"seed must be an object, not {kind_of(document)}", "seed")
    for kind in document:
        if kind not in SEEDERS:
            raise invalid(f"{kind} can't be seeded; {suggestion(kind, list(SEEDERS))}", kind)
    for kind, plant in SEEDERS.items():  # in this order, because later kinds name earlier ones
        rows = document.get(kind, [])
        if kind == "workspace" and isinstance(rows, dict):  # of which there is one
            rows = [rows]
        each = _each(rows, kind, str if kind in _TEXTS else dict)
        for row, where in sorted(each, key=_happened(kind)) if kind in _BY_TIME else each:
            _plant(workspace, plant, row, where)
    attach(workspace)


def _each(value: Json, where: str, kind: type = dict) -> Iterator[Tuple[Json, str]]:
    """What is in a list, which has to be of one type, and where. Raises ApiError 400."""
    if not isinstance(value, list):
        raise invalid(f"{where} must be a list, not {kind_of(value)}", where)
    for i, row in enumerate(value):
        wrong = typed_field(kind).wrong(row)
        if wrong:
            raise invalid(f"{where}[{i}] {wrong}", f"{where}[{i}]")
        yield row, f"{where}[{i}]"


def _plant(workspace: Workspace, plant: Seeder, row: Json, where: str) -> None:
    try:
        plant(workspace, row, where)
    except ApiError as error:
        named = error.message.startswith(where)
        raise invalid(error.message if named else f"{where}: {error.message}", where) from None
    except Exception as error:
        raise invalid(f"{where} is not what the App API would give: {error!r}", where) from None


Seeder = Callable[["Workspace", Json, str], None]

#: Kinds whose rows are texts.
_TEXTS = ("ip_addresses",)
#: Kinds that answers list newest first, and the field with the time; they are planted in order.
_BY_TIME = {"messages": "created", "activities": "timestamp"}


def _happened(kind: str) -> Callable[[Tuple[Json, str]], float]:
    def when(planted: Tuple[Json, str]) -> float:
        moment = planted[0].get(_BY_TIME[kind])
        return moment if type(moment) in (int, float) else math.inf  # the others are for `plant`

    return when


_PARENTS = (*[family.key for family in FAMILIES.values()], "action_id", "content_id")
#: What a row of these kinds may have; of the other kinds everything is kept and shown.
_SEEDED: Dict[str, FieldList] = {
    "customers": stored(
        some_word="id email cio_id", some_object="identifiers attributes timestamps",
        flag="unsubscribed", objects="devices", once="created_at updated_at",
    ),
    "devices": stored(
        "id platform", word="id", text="platform", once="last_used", some_object="attributes"
    ),
    "objects": stored(
        some_word="object_type_id object_id cio_object_id", objects="relationships",
        some_object="identifiers attributes timestamps", once="created_at updated_at",
    ),
    "relationships": stored(
        "identifiers", object="identifiers", some_object="attributes timestamps",
        any="object_type_id object_type_disabled",
    ),
    "collections": stored(objects="content data"),
    "exports": stored("type", whole="id", text="type", once="created_at", maybe="total downloads"),
    "activities": stored(
        "type", text="type", some_text="id name delivery_id delivery_type", once="timestamp",
        some_word="customer_id", some_object="customer_identifiers data",
    ),
    "esp_suppressions": stored(text="category type next", objects="suppressions"),
    "suppressions": stored("email", text="email reason status", once="created"),
    "triggers": stored(
        "broadcast_id", whole="id broadcast_id", once="created_at processed_at", texts="errors"
    ),
    "segments": stored(
        "name", whole="id", text="name", tags="tags", some_text="description type state "
        "deduplicate_id", words="ids emails", some_object="conditions", any="progress",
        once="created_at updated_at",
    ),
    "messages": stored(
        some_text="id deduplicate_id type recipient subject body from failure_message",
        some_word="customer_id trigger_event_id", moments="metrics", once="created",
        some_object="customer_identifiers", flag="forgotten",
        maybe="message_template_id msg_template_id parent_action_id " + " ".join(_PARENTS),
    ),
}  # fmt: skip


def _sound_row(fields: FieldList, row: Json, where: str) -> Json:
    """A row, if all its fields are what they have to be. Raises ApiError 400 naming the field."""
    for problem in fields.problems(row, f"{where}."):
        raise ApiError(400, problem)
    return row


def _of_kind(kind: str, row: Json, where: str) -> Json:
    """A row of a kind that does not keep what nobody knows; such fields are refused, too."""
    _sound_row(_SEEDED[kind], row, where)
    known = list(_SEEDED[kind].checks)
    for name in row:
        if name not in known:
            text = f"{where}.{name} is no field of {kind}; {suggestion(name, known)}"
            raise invalid(text, f"{where}.{name}")
    return row


def _shelve(workspace: Workspace, kind: str, row: Json, where: str, blank: Json = {}) -> Json:  # noqa: B006
    """Put a row up, over what a blank one has; gives the row. Raises ApiError 400."""
    shelf, fields, id = workspace.shelves[kind], SHELVES[kind], row.get("id")
    shelf.open = False
    words = fields.checks["id"] is not WHOLE
    if (
        id is not None
        and (type(id) is not int or id < 1)
        and not (words and type(id) is str and id)
    ):
        raise invalid(f"{where}.id must be a number from 1 up, not {id!r:.60}", f"{where}.id")
    if id in shelf.rows:
        raise invalid(f"{where}.id {id} is there already", f"{where}.id")
    blank = {**blank, **_told_by_its_version(row, list(fields.checks))}
    # What is null where the real service has no null is not set.
    unset = [n for n, v in row.items() if v is None and fields.checks.get(n, ANYTHING).wrong(v)]
    return _sound_row(fields, shelf.add({**blank, **without(row, unset)}, id), where)


def _told_by_its_version(row: Json, names: Sequence[str] = ("updated_at",)) -> Json:
    """When a row was changed, as its `deduplicate_id` says: "<id>:<Unix seconds>" (reference)."""
    version = as_text(row.get("deduplicate_id") or "").rpartition(":")[2]
    if not re.fullmatch(r"\d{1,12}", version):
        return {}
    return {name: int(version) for name in ("updated", "updated_at") if name in names}


def _seed_shelf(kind: str) -> Seeder:
    def plant(workspace: Workspace, row: Json, where: str) -> None:
        _shelve(workspace, kind, row, where)

    return plant


def _seed_family(family: Family) -> Seeder:
    def plant(workspace: Workspace, row: Json, where: str) -> None:
        inner = {name: row.get(name) or [] for name in (family.contents, "test_groups")}
        made = _shelve(
            workspace, family.kind, without(row, list(inner)), where,
            blank_row(workspace, family.kind),
        )  # fmt: skip
        described = {
            content.get("id") for content in inner[family.contents] if type(content) is dict
        }
        bare = [
            {"id": n, "type": made["type"]}
            for n in row.get("content_ids") or ()
            if n not in described
        ]
        for content, at in _each([*inner[family.contents], *bare], f"{where}.{family.contents}"):
            blank = blank_content(workspace, family)
            _shelve(workspace, family.shelf, {**content, "_parent": made["id"]}, at, blank)
        for group, at in _each(inner["test_groups"], f"{where}.test_groups"):
            _shelve(workspace, "test_groups", {**group, "_parent": made["id"]}, at)

    return plant


#: What a message or a webhook is in a workflow; the rest is its content.
_TILE_PARTS = ("id", "type", "preconditions", "response", "language", "parent_action_id")


def campaign_parts(
    row: Json, where: str, taken: Mapping[int, Json]
) -> Tuple[Json, Json, List[Tuple[Json, str]]]:
    """A seeded campaign in parts: what the App API shows, what it runs by, and its contents.

    Numbers in `taken` belong to actions of other campaigns. Raises ApiError 400 with the place.
    """
    plain = {k: v for k, v in row.items() if k not in ("actions", *WORKFLOW.checks)}
    plain.setdefault("type", _type_told(row))
    for name in plain:
        near = [] if name in _TOLD.checks else spelt_alike(name, [*WORKFLOW.checks], 1, 0.8)
        if near:
            place = f"{where}.{name}"
            raise invalid(f"{place} is no field of campaigns; did you mean {near[0]}?", place)
    _TOLD.read(spelt_out(plain), f"{where}.")
    flow = WORKFLOW.read(row, f"{where}.")
    numbering = Numbering(row.get("actions") or [], taken)
    flow["actions"] = numbering.rows(row.get("actions") or [], f"{where}.actions")
    return plain, {**flow, "_where": where}, numbering.contents


def _type_told(row: Json) -> str:
    """The type of a campaign that only says who enters."""
    told = [type for type, kind in TRIGGERS.items() if any(row.get(n) for n in kind.told_by)]
    return told[0] if told else "segment"


class Numbering:
    """Takes a workflow apart: tiles without contents, each with a number; and the contents."""

    def __init__(self, actions: Json, taken: Mapping[int, Json]) -> None:
        given = [row.get("id") for row in tiles_in(actions)]
        self.taken = {*taken}
        #: With their places.
        self.contents: List[Tuple[Json, str]] = []
        self._last = max([0, *taken, *(id for id in given if isinstance(id, int))])

    def rows(self, actions: Json, where: str, parent: int = 0) -> Json:
        """The tiles of a list, or of paths, and all that are inside of them."""
        if not isinstance(actions, list):
            return actions  # which will be refused
        take = [self.rows if isinstance(row, list) else self.tile for row in actions]
        return [take[i](row, f"{where}[{i}]", parent) for i, row in enumerate(actions)]

    def tile(self, action: Json, where: str, parent: int) -> Json:
        """One tile; `parent` is the test or the language branch that it is a variation of."""
        if not isinstance(action, dict):
            raise invalid(f"{where} must be an object, not {kind_of(action)}", where)
        type = plain_type(action.get("type", "email"))
        tile = {**action, "type": type, "id": self._number(action, where)}
        for name in ("variations", "paths"):
            if name in tile:
                inner = tile["id"] if name == "variations" else 0
                tile[name] = self.rows(tile[name], f"{where}.{name}", inner)
        if type not in (*_MESSAGE_TILES, "webhook"):
            return tile
        self.contents.append((_content_of(tile, parent), where))
        return {name: value for name, value in tile.items() if name in _TILE_PARTS}

    def _number(self, action: Json, where: str) -> int:
        number = action.get("id")
        if number is None:
            number = self._last = self._last + 1
        if WHOLE.wrong(number) or number < 1:
            raise invalid(f"{where}.id must be a number from 1 up", f"{where}.id")
        if number in self.taken:
            raise invalid(f"{where}.id {number} is there already", f"{where}.id")
        self.taken.add(number)
        return int(number)


def _content_of(action: Json, parent: int) -> Json:
    """What is sent by a tile, as the App API has it."""
    content = {k: v for k, v in action.items() if k not in ("preconditions", "response", "assign")}
    if content["type"] in ("twilio", "whatsapp"):
        content.setdefault("recipient", "{{customer.phone}}")
    return {**content, "parent_action_id": content.get("parent_action_id") or parent}


def _seed_campaign(workspace: Workspace, row: Json, where: str) -> None:
    """A campaign: what the App API shows of it, and what it runs by."""
    shelves = workspace.shelves
    shelves["campaigns"].open = False
    parts = campaign_parts(without(row, ["test_groups"]), where, shelves["campaign_actions"].rows)
    plain, flow, contents = parts
    blank = blank_row(workspace, "campaigns")
    blank["active"] = plain.get("state", "running") == "running"
    made = _shelve(workspace, "campaigns", {**plain, "_journey": flow}, where, blank)
    for content, at in contents:
        blank = blank_content(workspace, CAMPAIGNS)
        _shelve(workspace, CAMPAIGNS.shelf, {**content, "_parent": made["id"]}, at, blank)
    for group, at in _each(row.get("test_groups") or [], f"{where}.test_groups"):
        _shelve(workspace, "test_groups", {**group, "_parent": made["id"]}, at)
    gate = workspace.beside(Gate)
    gate.add(Plan(gate.workspace, made, where))


_LIMIT = CLOSED.having(
    "limit within",
    limit=number_field(1, MAX_NUMBER, int),
    within=number_field(1, MAX_NUMBER, int),
    retry=number_field(0, MAX_NUMBER, int),
)
_WEB_SETTINGS = CLOSED.having(message_limit=object_field(_LIMIT), whole="random_seed")


def _seed_settings(workspace: Workspace, row: Json, where: str) -> None:
    workspace.journeys.settings = _WEB_SETTINGS.read(row, "workspace.")


#: The conditions of a dynamic segment of which nobody has told us any: the API does not show them.
NOBODY: Json = {"attribute": {"field": "cio_id", "operator": "eq", "value": "unknown"}}


def _seed_segment(workspace: Workspace, row: Json, where: str) -> None:
    _of_kind("segments", row, where)
    number = row.get("id") or workspace.count("segment")
    if number in workspace.segments.rows or number < 1:
        wrong = "must be a number from 1 up" if number < 1 else f"{number} is there already"
        raise invalid(f"{where}.id {wrong}", f"{where}.id")
    now = workspace.seconds()
    segment = Segment(number, row["name"], row.get("created_at") or now)
    segment.description, segment.tags = row.get("description") or "", row.get("tags")
    segment.state, segment.progress = row.get("state") or "finished", row.get("progress")
    stamps = {**_told_by_its_version(row), **row}
    segment.updated_at = stamps.get("updated_at") or now
    segment.conditions = row.get("conditions") or (NOBODY if row.get("type") == "dynamic" else None)
    if segment.conditions:
        compile = workspace.segments.compile
        segment.predicate = compile(segment.conditions, f"{where}.conditions")
    workspace.segments.rows[number] = segment
    named = [(kind, as_text(v)) for kind in ("id", "email") for v in row.get(f"{kind}s", ())]
    outcome = workspace.segments.add_to_segment(("segment", str(number)), number, named)
    if outcome is not DONE:
        raise invalid(f"{where}: {outcome.text}; seed them as customers", where)


def _seed_person(workspace: Workspace, row: Json, where: str) -> None:
    if isinstance(row.get("customer"), dict):  # as in the answer for many people
        row, where = row["customer"], f"{where}.customer"
    _of_kind("customers", row, where)
    given = _as_sent(without(row.get("attributes") or {}, COMPUTED))
    checked_attributes(given, f"{where}.attributes")
    named = {**(row.get("identifiers") or {}), **row, **given}
    known = {kind: named[kind] for kind in ("id", "email") if named.get(kind)}
    if not known:
        raise invalid(f"{where} needs an id or an email", where)
    who, *_ = [(kind, identifier_text(v, f"{where}.{kind}")) for kind, v in known.items()]
    extra = {"unsubscribed": row["unsubscribed"]} if row.get("unsubscribed") else {}
    outcome = workspace.people.identify(who, {**given, **known, **extra})
    person = workspace.people.find(who)
    if outcome is not DONE or person is None:
        raise invalid(f"{where}: {outcome.text}", where)
    person.timestamps = {**person.timestamps, **(row.get("timestamps") or {})}
    for device, at in _each(row.get("devices", []), f"{where}.devices"):
        used = device_of(_of_kind("devices", device, at), "id", workspace.seconds())
        texts = {name: as_text(v) for name, v in (device.get("attributes") or {}).items()}
        workspace.devices.add_device(
            who, *used[:3], texts
        )  # with the status that only the service sets


def _as_sent(attributes: Json) -> Json:
    """Attributes as a call sets them: reading gives preferences as a text."""
    preferences = attributes.get("cio_subscription_preferences")
    if not isinstance(preferences, str) or not preferences:
        return attributes
    return {**attributes, "cio_subscription_preferences": decode_json(preferences.encode())}


def _seed_object(workspace: Workspace, row: Json, where: str) -> None:
    _of_kind("objects", row, where)
    key = object_key({**(row.get("identifiers") or {}), **row, "cio_object_id": None}, where)
    attributes = checked_attributes(row.get("attributes") or {}, f"{where}.attributes")
    workspace.objects.identify_object(("object_id", key[1]), key, attributes)
    for related, at in _each(row.get("relationships", []), f"{where}.relationships"):
        ids = _of_kind("relationships", related, at)["identifiers"]
        given = [(kind, ids[kind]) for kind in ("id", "email", "cio_id") if ids.get(kind)]
        if not given:
            raise invalid(f"{at}.identifiers needs an id or an email", f"{at}.identifiers")
        who = (given[0][0], identifier_text(given[0][1], f"{at}.identifiers.{given[0][0]}"))
        more = checked_attributes(related.get("attributes") or {}, f"{at}.attributes")
        workspace.objects.add_relationship(who, key, more)


#: What is shown of a seeded message as it was told.
_TOLD_OF_MESSAGES = (
    "deduplicate_id", "message_template_id", "msg_template_id", "parent_action_id",
    "trigger_event_id", "failure_message", "forgotten",
)  # fmt: skip


def _seed_message(workspace: Workspace, row: Json, where: str) -> None:
    _of_kind("messages", row, where)
    created, type = row.get("created") or workspace.seconds(), row.get("type") or "email"
    message = {name: row[name] for name in ("subject", "body", "from") if row.get(name)}
    number = workspace.count("delivery")
    id = row.get("id") or delivery_id_of(created, number, "campaign")
    if id in workspace.deliveries.rows:
        raise invalid(f"{where}.id {id} is there already", f"{where}.id")
    delivery = Delivery(id, _CHANNELS.get(type, type), message, created)
    delivery.parents = {name: row[name] for name in _PARENTS if row.get(name)}
    customer = row.get("customer_id")
    delivery.recipient = row.get("recipient") or ""
    delivery.customer_id = None if customer is None else as_text(customer)
    delivery.person = workspace.people.find(("id", delivery.customer_id or ""))
    strange = () if delivery.person else ("customer_identifiers",)
    told = {name: row[name] for name in (*_TOLD_OF_MESSAGES, *strange) if row.get(name) is not None}
    delivery.told = told
    workspace.deliveries.post(delivery)
    for metric, when in (row.get("metrics") or {}).items():
        if metric != "created":
            workspace.deliveries.report(delivery, metric, when)


def _seed_webhook(workspace: Workspace, row: Json, where: str) -> None:
    off = {"disabled": False, "full_resolution": False, "with_content": False, "type": "webhook"}
    _shelve(workspace, "reporting_webhooks", row, where, {"name": "", **off})


def _seed_snippet(workspace: Workspace, row: Json, where: str) -> None:
    stamp = {"updated_at": workspace.seconds()}
    snippet = _sound_row(SHELVES["snippets"], {**stamp, **row}, where)
    workspace.shelves["snippets"].rows[row["name"]] = snippet


def _seed_collection(workspace: Workspace, row: Json, where: str) -> None:
    _sound_row(_SEEDED["collections"], row, where)
    content = row.get("content") or row.get("data") or []
    stamps = dict.fromkeys(("created_at", "updated_at"), workspace.seconds())
    known, given = content_of(content), without(row, ("content", "data"))
    # What the content is like counts as told for one whose content was not pasted, too.
    full = {**given, **known} if content else {**known, **given}
    _shelve(workspace, "collections", full, where, stamps)


def content_of(rows: Json) -> Json:
    """A collection's content, and what is shown of it."""
    schema = list(dict.fromkeys(name for entry in rows for name in entry))
    return {"_content": rows, "bytes": len(compact(rows)), "rows": len(rows), "schema": schema}


def _seed_export(workspace: Workspace, row: Json, where: str) -> None:
    _sound_row(_SEEDED["exports"], row, where)
    number, now = row.get("id") or workspace.count("export"), workspace.seconds()
    if number in workspace.exports:
        raise invalid(f"{where}.id {number} is there already", f"{where}.id")
    export = Export(number, row["type"], row.get("total") or 0, b"", row.get("created_at") or now)
    export.downloads, export.told = row.get("downloads") or 0, without(row, ("downloads",))
    workspace.exports[number] = export


def _seed_activity(workspace: Workspace, row: Json, where: str) -> None:
    _sound_row(_SEEDED["activities"], row, where)
    ids = {"id": row.get("customer_id"), **(row.get("customer_identifiers") or {})}
    named = [(kind, as_text(ids[kind])) for kind in ("id", "email") if ids.get(kind)]
    person = next(filter(None, map(workspace.people.find, named)), None)
    delivery, ground = workspace.deliveries.rows.get(row.get("delivery_id") or ""), workspace.ground
    ground.noted += 1
    told = {name: row[name] for name in ("id", "delivery_id", "delivery_type") if name in row}
    if person is None:
        told.update({n: row[n] for n in ("customer_id", "customer_identifiers") if n in row})
    when, data = row.get("timestamp") or workspace.seconds(), row.get("data") or {}
    name = row.get("name") or ""
    ground.activities.append(
        Activity(ground.noted, when, row["type"], person, name, lambda: data, delivery, told)
    )


def _seed_esp(workspace: Workspace, row: Json, where: str) -> None:
    _sound_row(_SEEDED["esp_suppressions"], row, where)
    type = row.get("type") or ("spam_reports" if row.get("category") == "spam" else "bounces")
    for entry, at in _each(row.get("suppressions", []), f"{where}.suppressions"):
        _sound_row(_SEEDED["suppressions"], entry, at)
        blank = {"created": workspace.seconds(), "reason": "", "status": ""}
        workspace.deliveries.esp.setdefault(type, {})[entry["email"].lower()] = {**blank, **entry}


def _seed_trigger(workspace: Workspace, row: Json, where: str) -> None:
    _sound_row(_SEEDED["triggers"], row, where)
    at, ended = row.get("created_at") or workspace.seconds(), row.get("processed_at")
    about = {"campaign_id": row["broadcast_id"], "payload": {}, "errors": row.get("errors", [])}
    number = row.get("id") or workspace.count("trigger")
    workspace.broadcasts.append({"id": number, **about, "processed_at": ended, "received_at": at})


#: What can be seeded and how, in the order in which it is done.
SEEDERS: Dict[str, Seeder] = {
    "workspace": _seed_settings,
    "workspaces": _seed_shelf("workspaces"),
    "ip_addresses": lambda workspace, row, where: workspace.ip_addresses.append(row),
    "object_types": _seed_shelf("object_types"),
    "topics": _seed_shelf("topics"),
    "channels": _seed_shelf("channels"),
    "sender_identities": _seed_shelf("sender_identities"),
    "snippets": _seed_snippet,
    "collections": _seed_collection,
    "customers": _seed_person,
    "objects": _seed_object,
    "segments": _seed_segment,
    **{kind: _seed_family(family) for kind, family in FAMILIES.items()},
    "campaigns": _seed_campaign,
    "reporting_webhooks": _seed_webhook,
    "inbox_preview_clients": _seed_shelf("inbox_preview_clients"),
    "inbox_preview_credits": _seed_shelf("inbox_preview_credits"),
    "imports": _seed_shelf("imports"),
    "exports": _seed_export,
    "triggers": _seed_trigger,
    "esp_suppressions": _seed_esp,
    "messages": _seed_message,
    "activities": _seed_activity,
}


# ======================================================================================
# ==== §18 Requests
# ======================================================================================

#: Where we say what the real service keeps to itself: why a call was refused or had no effect.
REASON_HEADER = "X-Parlel-Reason"

Headers = Tuple[Tuple[str, str], ...]


def without_encoding(raw: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding. Raises ApiError 400, 413 past `limit` bytes, or 415."""
    if encoding in ("", "identity"):
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ApiError(415, f"Content-Encoding '{encoding}' is not supported: use gzip or none")
    # 47: gzip or zlib, found by its header; some clients call a raw stream "deflate".
    for window in (47, -15):
        with contextlib.suppress(zlib.error):
            try:
                return decompressed(raw, window, limit)
            except ValueError:
                text = f"the body inflates to more than {limit} bytes: raise --max-body"
                raise ApiError(413, text) from None
    raise invalid(f"the body is not valid {encoding}", reason="parse_error")


def _always() -> bool:
    return True


#: Stands for a body that nobody has read yet.
_UNREAD = object()


#: Longer bodies are cut in the journal, in bytes.
MAX_KEPT_BODY = 64 * 1024


class Request:
    """One HTTP request, complete. `path` is still percent-encoded; header names are lower case."""

    __slots__ = (
        "arguments", "awaited", "body", "by_path", "headers", "made", "method", "named",
        "operation", "path", "prefix", "query_text", "read", "scheme", "size", "target", "until",
    )  # fmt: skip

    method: str
    #: As it was sent; `path` and `query_text` are its parts.
    target: str
    path: str
    query_text: str
    headers: Mapping[str, str]
    body: bytes
    scheme: str
    #: What comes before the path in links, for a workspace that is not the default one.
    prefix: str
    #: The path or query names that workspace, not the key.
    by_path: bool
    #: What the body was read as, or why it can't be; it is read once, then dropped.
    read: Json
    #: The person and the events in a body that has been cut.
    named: Optional[Tuple[Optional[str], List[str]]]
    #: Whether anybody still waits for the answer.
    awaited: Callable[[], bool]
    #: Where it waits for news: for how long at most, monotonic seconds. Unset for all others.
    until: float
    operation: Optional[Operation]
    arguments: Sequence[str]
    #: What the handler gave, or a function that does the rest, where the loop has left it to a
    #: thread to make an answer of it.
    made: Json
    #: Length of the body once `json` has undone its encoding, in bytes.
    size: int

    def __init__(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        scheme: str = "http",
    ) -> None:
        self.method, self.target, self.headers = method, target, headers
        self.body, self.scheme = body, scheme
        if target[:1] != "/":  # a whole URL, as for a proxy
            target = "/" + re.sub(r"\A(?:[^:]*://[^/?]*/?|\*)", "", target)
        self.path, _, self.query_text = target.partition("?")
        self.prefix, self.operation, self.arguments = "", None, ()
        self.by_path, self.awaited = False, _always
        self.named = self.made = None
        self.read = _UNREAD
        self.size = len(body)

    def json(self, limit: int, depth: int = MAX_DEPTH) -> Json:
        """The body as JSON, null if there is none; `limit` is for inflating, in bytes."""
        if self.read is _UNREAD:
            try:
                self.read = self._decoded(limit, depth)
            except ApiError as error:
                self.read = error
        if isinstance(self.read, ApiError):
            raise self.read
        return self.read

    def _decoded(self, limit: int, depth: int) -> Json:
        raw, encoding = self.body, self.headers.get("content-encoding")
        if encoding:
            raw = without_encoding(raw, encoding.strip().lower(), limit)
            self.size = len(raw)
        try:
            operation = self.operation  # who tests may send what they like
            bounded = operation is None or operation.api is not CONTROL
            return decode_json(raw, depth, bounded)
        except NotANumber:
            raise
        except ApiError:
            # curl -d labels JSON as a form, so only what does not parse is judged by its label.
            label = self.headers.get("content-type", "application/json").partition(";")[0].strip()
            meant = raw.lstrip()[:1] in (b"{", b"[")
            if label and "json" not in label.lower() and not meant:
                text = f"Content-Type '{label}' is not supported: send application/json"
                raise ApiError(415, text) from None
            raise

    def plain(self, limit: int = 1 << 24) -> bytes:
        """The body without its Content-Encoding, where that can be undone; `limit` in bytes."""
        try:
            encoding = self.headers.get("content-encoding", "").strip().lower()
            return without_encoding(self.body, encoding, limit)
        except ApiError:
            return self.body

    def inflates_beyond(self, most: int) -> bool:
        """Whether the body is longer without its Content-Encoding, in bytes."""
        return len(self.plain()) > most

    def cut(self, limit: int) -> None:
        """Keep the beginning of a long body only: the request has been answered."""
        plain, body = self.plain(limit), self.read
        if body is _UNREAD or isinstance(body, ApiError):
            body = body_as_read(plain)
        self.named = person_named(self, body), sorted(events_named(self, body))
        self.body, self.size = plain[:MAX_KEPT_BODY], max(self.size, len(plain))
        headers = self.headers.items()
        self.headers = {k: v for k, v in headers if k != "content-encoding"}

    def query(self) -> Dict[str, str]:
        """The query parameters, the last of each name. Raises ApiError 400."""
        if not self.query_text:
            return {}
        try:
            pairs = parse_qsl(self.query_text, True, errors="strict", max_num_fields=100)
        except UnicodeDecodeError:
            raise invalid("the query string is not percent-encoded UTF-8") from None
        except ValueError:
            raise invalid("the query string has more than 100 fields") from None
        return dict(pairs)

    def base_url(self, settings: Settings) -> str:
        """The URL under which this client reaches us, without a slash at its end."""
        if settings.public_url:
            return settings.public_url.rstrip("/") + self.prefix
        host = self.headers.get("host") or f"{settings.host}:{settings.port}"
        return f"{self.scheme}://{host}{self.prefix}"


class Response:
    """One HTTP answer. `close` ends the connection after it."""

    __slots__ = ("body", "close", "fault", "headers", "later", "status")

    status: int
    body: bytes
    headers: Headers
    close: bool
    #: What went wrong on purpose; the server does to the bytes what it says.
    fault: Optional[Fault]
    #: There is nothing to say yet: the request is to be handled again in a moment.
    later: bool

    def __init__(
        self, status: int = 200, body: bytes = b"", headers: Headers = (), close: bool = False
    ) -> None:
        self.status, self.body, self.headers, self.close = status, body, headers, close
        self.fault, self.later = None, False


#: The answer of the loop to what is for a thread, see `Request.made`.
_LATER = Response()
_LATER.later = True


def is_bulky(value: Json) -> bool:
    """Whether JSON of a value is longer than the loop should make; looks no further than that."""
    left, parts = LOOP_BODY, [value]
    for part in parts:  # which grow meanwhile
        values = part.values() if type(part) is dict else part
        left -= 16 * len(values)  # a number and its name, say
        if left <= 0:
            return True
        for each in values:
            kind = type(each)
            if kind is str:
                left -= len(each)
            elif kind is dict or kind is list:
                parts.append(each)
    return left <= 0


def compact_line(value: Json) -> bytes:
    """Compact JSON with a newline, for terminals."""
    return compact(value) + b"\n"


def pretty(value: Json) -> bytes:
    """JSON as the Track API writes its errors: two spaces and a final newline (observed)."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


# ---- credentials


def _after_scheme(header: str, wanted: str) -> str:
    scheme, space, rest = header.partition(" ")
    if not header:
        raise ValueError("missing: no Authorization header")
    if scheme.lower() != wanted.lower():
        # Without a space it may be the key itself, which is nobody else's to read.
        given = f"'{scheme}'" if space else "nothing"
        raise ValueError(f"wrong scheme: {given} where {wanted} belongs")
    return rest


@functools.lru_cache(maxsize=256)
def basic_pair(header: str) -> Tuple[str, str]:
    """User name and password out of a Basic header; raises ValueError with what is wrong."""
    text = _after_scheme(header, "Basic")
    try:
        # The Go client may use the URL-safe alphabet.
        raw = base64.b64decode(text.strip().translate(_URL_SAFE), validate=True).decode()
    except ValueError:
        raise ValueError("undecodable: the part after Basic is not base64 of text") from None
    user, colon, password = raw.partition(":")
    if not colon:
        raise ValueError("undecodable: expected user:password inside the base64")
    if not user:
        raise ValueError("missing: the user name is empty")
    return user, password


_URL_SAFE = str.maketrans("-_", "+/")


@functools.lru_cache(maxsize=256)
def bearer_token(header: str) -> str:
    """The token of a Bearer header; raises ValueError with what is wrong."""
    token = _after_scheme(header, "Bearer").strip()
    if not token:
        raise ValueError("missing: nothing after Bearer")
    try:
        return token.encode("latin-1").decode()  # curl sends UTF-8, headers are read as Latin-1
    except UnicodeError:
        return token


def _verify(wanted: str, given: str, what: str) -> None:
    """Compare in constant time, so that a key can't be guessed by the clock."""
    key = wanted.strip().encode("utf-8", "surrogateescape")
    if wanted and not hmac.compare_digest(key, given.strip().encode("utf-8", "replace")):
        raise ValueError(f"unknown key: this is not the configured {what}")


def check_track(settings: Settings, request: Request) -> None:
    """Basic site_id:api_key."""
    site_id, api_key = basic_pair(request.headers.get("authorization", ""))
    if not api_key:
        raise ValueError("missing: the password, which is the API key, is empty")
    if settings.site_id or settings.api_key:
        _verify(settings.site_id, site_id, "site id")
        _verify(settings.api_key, api_key, "API key")


def check_app(settings: Settings, request: Request) -> None:
    """Bearer app key."""
    token = bearer_token(request.headers.get("authorization", ""))
    if settings.app_key:
        _verify(settings.app_key, token, "app key")


def check_pipelines(settings: Settings, request: Request) -> None:
    """Basic write_key: (empty password); Bearer, too, as one client and seed 003 have it."""
    header = request.headers.get("authorization", "")
    bearer = header[:7].lower() == "bearer "
    key = bearer_token(header) if bearer else basic_pair(header)[0]
    _verify(settings.write_key, key, "write key")


def check_written_key(settings: Settings, request: Request) -> None:
    """The write key where the browser and mobile SDKs have it, or in a header as elsewhere."""
    if request.headers.get("authorization"):
        return check_pipelines(settings, request)
    key = written_key(request, settings.max_body)
    if not key:
        raise ValueError("missing: no Authorization header, and no writeKey in the body")
    return _verify(settings.write_key, key, "write key")


def written_key(request: Request, limit: int) -> str:
    """The write key in the path of an SDK's settings, or in a body of at most `limit` bytes.

    "" if there is none. Raises ApiError 400 for a body that is not JSON.
    """
    if request.path.endswith("/settings"):
        return unquote(request.path.split("/")[-2])
    body = request.json(limit)
    return as_text(body.get("writeKey") or "") if isinstance(body, dict) else ""


def check_region(settings: Settings, request: Request) -> None:
    """A key of one region is unknown to the hosts of the other (observed); ours have none."""
    host = request.headers.get("host", "").partition(":")[0].lower()
    if host.endswith(".customer.io"):
        asked = "eu" if host.partition(".")[0].endswith("-eu") else "us"
        if asked != settings.region:
            raise ValueError(
                f"wrong region: {host} is in {asked}, the keys are of {settings.region}"
            )


def check_nothing(settings: Settings, request: Request) -> None:
    """For operations without credentials."""


def check_local(settings: Settings, request: Request) -> None:
    """Keep web pages away from the control endpoints: a browser says where a call comes from.

    Raises ApiError 403. Programs send neither Origin nor Sec-Fetch-Site; a DNS rebinding
    attack shows in a public Host name.
    """
    headers = request.headers
    host = headers.get("host", "")
    origin = headers.get("origin", f"{request.scheme}://{host}")
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") or origin.partition("://")[2] != host:
        raise ApiError(403, "control endpoints can't be called by web pages of another origin")
    if not _is_local(host, settings.allow_host):
        raise ApiError(403, f"Host '{host}' is not a local name; allow it with --allow-host")


def check_page(settings: Settings, request: Request) -> None:
    """Refuse what a web page writes under a public name that leads here (DNS rebinding).

    Such a page could send a message and open its HTML. Pages of other origins may call the
    APIs that browsers use; their own address stands in Origin, ours in Host. Raises ApiError 403.
    """
    host = request.headers.get("host", "")
    ours = f"{settings.allow_host},{urlsplit(settings.public_url).hostname or ''}"
    if not _is_local(host, ours) and not _OFFICIAL_HOST.search(host):
        raise ApiError(403, f"Host '{host}' is not a local name; allow it with --allow-host")


#: May be led here by a hosts file; nobody else can have such a name.
_OFFICIAL_HOST = re.compile(r"(?i)\.customer\.io\.?(:\d*)?$")
_LOCAL_SUFFIXES = (
    "localhost", "local", "internal", "test", "lan", "svc", "intranet", "home.arpa",
)  # fmt: skip


@functools.lru_cache(maxsize=256)
def _is_local(host: str, allowed: str) -> bool:
    name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
    if "." not in name or name in re.split(r"[,\s]+", allowed.lower()):
        return True
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name.endswith(tuple("." + suffix for suffix in _LOCAL_SUFFIXES))


# ---- the APIs and the route table


class Api(NamedTuple):
    """What the operations of one API share."""

    name: str
    check: Callable[[Settings, Request], None]
    envelope: Callable[[ApiError], Json]
    write: Callable[[Json], bytes]
    headers: Headers
    #: Sent with a 401.
    challenge: Headers = ()


_JSON = ("Content-Type", "application/json; charset=utf-8")
_ANY_ORIGIN = ("Access-Control-Allow-Origin", "*")
_NO_CACHE = ("Cache-Control", "no-cache, no-store, must-revalidate, max-age=0")
_TRACK_HEADERS = (_JSON, _ANY_ORIGIN, _NO_CACHE)
_REALM = (("WWW-Authenticate", 'Basic realm="Customer.io edge event collection"'),)
# Browsers may not call the App API: it names its own origin (observed).
_APP_HEADERS = (
    _JSON,
    ("Access-Control-Allow-Origin", "https://fly.customer.io"),
    ("Cache-Control", "must-revalidate,no-cache,no-store"),
    ("X-Content-Type-Options", "nosniff"),
)
#: For what somebody else has written: it may be looked at, but not act on this origin.
SANDBOXED = (
    ("Content-Security-Policy", "sandbox allow-popups allow-popups-to-escape-sandbox"),
    ("X-Content-Type-Options", "nosniff"),
)
_OWN_HEADERS = (_JSON, ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))

TRACK = Api("track", check_track, meta_errors, pretty, _TRACK_HEADERS, _REALM)
TRACK_MERGE = TRACK._replace(envelope=meta_error)
TRACK_OPEN = TRACK._replace(check=check_nothing)
TRACK_V2 = TRACK._replace(envelope=problem_list)
APP = Api("app", check_app, detail_list, compact, _APP_HEADERS)
APP_SEND = APP._replace(envelope=meta_error)
APP_OPEN = APP._replace(check=check_nothing)
PIPELINES = Api("pipelines", check_pipelines, pipelines_errors, compact, _TRACK_HEADERS, _REALM)
PIPELINES_SDK = PIPELINES._replace(check=check_written_key)
SHARED = Api("shared", check_nothing, meta_error, compact, _OWN_HEADERS)
CONTROL = Api("control", check_local, meta_error, compact_line, _OWN_HEADERS)

#: Takes a Call and the decoded path parameters; gives what `answer` takes.
Handler = Callable[..., Any]
SomeHandler = TypeVar("SomeHandler", bound=Handler)


class Operation(NamedTuple):
    """A row of the route table. `heavy` ones are served by a thread of their own."""

    method: str
    path: str
    api: Api
    handler: Handler
    heavy: bool
    #: What a body may have; None if none is read.
    fields: Optional[FieldList] = None

    @property
    def pattern(self) -> Pattern[str]:
        """What a path has to match; `{name}` takes one segment."""
        return _compiled_path(self.path)

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").partition("\n")[0]

    def document(self) -> Json:
        """The operation as `/__parlel/routes` shows it."""
        named = {"method": self.method, "path": self.path, "api": self.api.name}
        told = {"fields": self.fields.document(), "free": self.fields.free} if self.fields else {}
        return {**named, "summary": self.summary, **told}


@functools.cache
def _compiled_path(path: str) -> Pattern[str]:
    # When the first request needs it: all of them at once take a tenth of the start.
    return re.compile(re.sub(r"\{\w+\}", "([^/]+)", path))


#: Every operation, in the order of this file.
ROUTES: List[Operation] = []
_INDEX: Dict[Tuple[str, int], List[Operation]] = {}
# Base URLs with a slash at their end give `//v1/…` and `/api/v1//customers/…`; and the App API
# answers under `/v1/api/…`, too, where older clients look for it. `/v1/v1/` is a URL with a `/v1`
# given to a client that adds its own.
_WORDY_BEGINNING = re.compile(r"^/+(?:(api)/+)?(?:(v1|v2|__parlel)/+(?:(?:api|v1)/+)?)?")


def route(
    method: str, path: str, api: Api, heavy: bool = False, fields: Optional[FieldList] = None
) -> Callable[[SomeHandler], SomeHandler]:
    """Put a handler into the route table; `{name}` in the path matches one segment.

    `fields` are those of the body, which `Call.fields` reads.
    """

    def add(handler: SomeHandler) -> SomeHandler:
        operation = Operation(method, path, api, handler, heavy, fields)
        ROUTES.append(operation)
        rows = _INDEX.setdefault((method, path.count("/")), [])
        rows.append(operation)
        rows.sort(key=lambda row: row.path.count("{"))  # literal segments come first
        return handler

    return add


def find_operation(request: Request, path: str = "") -> Operation:
    """Set the operation and arguments of a request; gives it. Raises ApiError 404 or 405."""
    method, path = request.method, path or request.path
    for fullmatch, operation in _candidates(method, path.count("/"), path[:8]):
        match = fullmatch(path)
        if match:
            request.operation, request.arguments = operation, match.groups()
            return operation
    plain = plain_path(path)
    if plain != path:
        return find_operation(request, plain)
    methods = {row.method for row in ROUTES}
    count, begin = path.count("/"), path[:8]
    allowed = [m for m in methods for match, _ in _candidates(m, count, begin) if match(path)]
    if allowed:
        names = ", ".join(sorted({*allowed, "OPTIONS"} | ({"HEAD"} if "GET" in allowed else set())))
        text = f"{method[:20]} is not allowed here, only {names}"
        raise ApiError(405, text, headers=[("Allow", names)])
    raise ApiError(404, _unknown_path("GET" if method == "HEAD" else method, path))


def plain_path(path: str) -> str:
    """A path without what a base URL has too many of: slashes, `api` or `v1` behind the `v1`."""
    return _WORDY_BEGINNING.sub(lambda m: "/".join(["", *filter(None, m.groups()), ""]), path)


@functools.lru_cache(maxsize=512)
def _candidates(
    method: str, slashes: int, begin: str
) -> List[Tuple[Callable[[str], Optional[Match[str]]], Operation]]:
    rows = _INDEX.get(("GET" if method == "HEAD" else method, slashes), ())
    near = [row for row in rows if begin.startswith(row.path[: len(begin)].partition("{")[0])]
    return [(row.pattern.fullmatch, row) for row in near]


@functools.lru_cache(maxsize=256)
def _unknown_path(method: str, path: str) -> str:
    known = {f"{row.method} {row.path}" for row in ROUTES}
    near = _ending_alike(method, path) or spelt_alike(f"{method} {path}", known, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; GET /__parlel/routes lists all"
    return f"unknown path: {method[:20]} {path[:200]}{hint}"


def _ending_alike(method: str, path: str) -> List[str]:
    """The routes that a path with a wrong beginning, or a slash at its end, is meant for."""
    words, found = path.strip("/").split("/"), []
    for row in ROUTES:
        if row.method != method or not row.path.endswith(("}", words[-1])):
            continue
        wanted = row.path.strip("/").split("/")
        pairs = list(zip(reversed(words), reversed(wanted)))
        same = sum(word == name for word, name in pairs)
        if same and all(w == n or n[:1] == "{" for w, n in pairs):
            found.append((-same, abs(len(words) - len(wanted)), f"{row.method} {row.path}"))
    return [label for *_, label in sorted(found)[:3]]


def decoded(segment: str) -> str:
    """A path segment without its percent-escapes. Raises ApiError 400."""
    if "%" not in segment:
        return segment
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise invalid(f"path segment '{segment[:100]}' is not percent-encoded UTF-8") from None
    if re.search(r"%(?![0-9A-Fa-f]{2})", segment) or "\0" in text:
        raise invalid(f"path segment '{segment[:100]}' has an invalid percent-escape")
    return text


# ---- the journal

_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie")


class Entry(NamedTuple):
    """A request that was answered. `at` is Unix seconds, `took` seconds."""

    number: int
    at: float
    took: float
    request: Request
    response: Response

    def line(self) -> str:
        """What was asked and answered, in a line."""
        text = self.response.body.decode("utf-8", "replace")
        told = dict(self.response.headers).get(REASON_HEADER) or " ".join(text.split())
        return f"{self.request.method} {self.request.path} {self.response.status} {told[:200]}"

    def record(self) -> RequestRecord:
        """The entry as `/__parlel/requests` shows it; secrets are masked."""
        request, response, operation = self.request, self.response, self.request.operation
        reasons, body = dict(response.headers), body_as_read(unsecret(request.plain()))
        person, events = request.named or (
            person_named(request, body),
            sorted(events_named(request, body)),
        )
        return {
            "id": self.number,
            "at": self.at,
            "workspace": request.prefix[2:] or None,
            "method": request.method,
            "path": request.path,
            "decoded_path": unquote(request.path, errors="replace"),
            "query": dict(parse_qsl(request.query_text, True)),
            "headers": {name: masked(name, value) for name, value in request.headers.items()},
            "body": body,
            "operation": f"{operation.method} {operation.path}" if operation else None,
            "api": operation.api.name if operation else None,
            "person": person,
            "events": events,
            "status": response.status,
            "duration_ms": round(self.took * 1000, 3),
            "response": body_as_read(unsecret(response.body)),
            "reason": reasons.get(REASON_HEADER),
            "fault": response.fault.id if response.fault else None,
        }


#: Like `Entry(*fields)`, but with no Python code in between.
_new_entry = cast(Callable[[Tuple[Any, ...]], Entry], functools.partial(tuple.__new__, Entry))

_SCHEME = re.compile(r"(basic|bearer|digest) ", re.I)


def masked(name: str, value: str) -> str:
    """A header value without its secret: the scheme stays."""
    if name not in _SECRET_HEADERS:
        return value
    scheme = _SCHEME.match(value)
    return f"{scheme[0]}***" if scheme else "***"


def told_of(request: Request, response: Response, took: float) -> str:
    """A request in a line of the log: what was asked, how it went and how long, and about whom."""
    body = body_as_read(request.plain())
    person, events = request.named or (person_named(request, body), events_named(request, body))
    about = [person or "", *sorted(events), request.prefix.strip("/")]
    line = f"{request.method} {request.target} {response.status}  {took * 1000:.1f} ms  "
    return (line + "  ".join(filter(None, about))).rstrip()


def body_as_read(raw: bytes) -> Json:
    """A body as JSON if it is some, else as text."""
    try:
        return decode_json(raw)
    except ApiError:
        return raw[:MAX_KEPT_BODY].decode("utf-8", "replace")


def person_named(request: Request, body: Json) -> Optional[str]:
    """Whom a request names, in its path or body; None if nobody."""
    operation = request.operation
    if operation and "/customers/{" in operation.path and request.arguments:
        return unquote(request.arguments[0], errors="replace")
    if not isinstance(body, dict):
        return None
    named = body.get("identifiers") or {"id": body.get("userId")}
    values = list(named.values()) if isinstance(named, dict) else []
    return as_text(values[0]) if values and values[0] is not None else None


def events_named(request: Request, body: Json) -> Set[str]:
    """The names of the events in a request, trimmed as when they are recorded."""
    operation = request.operation
    if operation is None or not (
        operation.path.endswith("events") or operation.api in (TRACK_V2, PIPELINES)
    ):
        return set()
    pairs = ((item, name) for item in _items_of(body) for name in ("name", "event"))
    return {as_text(item[name]).strip() for item, name in pairs if name in item}


def _items_of(body: Json) -> List[Json]:
    """A body and the items of its batch, as far as they are objects."""
    batch = body.get("batch") if isinstance(body, dict) else None
    items = [body, *(batch if isinstance(batch, list) else ())]
    return [item for item in items if isinstance(item, dict)]


class Journal:
    """The newest requests, oldest first, and how many there were; control calls are not kept."""

    rows: Deque[Entry]
    count: int

    def __init__(self, most: int) -> None:
        self.rows, self.count = deque(maxlen=most), 0
        self._lock = threading.Lock()

    def add(self, at: float, took: float, request: Request, response: Response) -> None:
        """Write a request down; from any thread."""
        if len(response.body) > MAX_KEPT_BODY:
            cut = Response(response.status, response.body[:MAX_KEPT_BODY], response.headers)
            cut.fault, response = response.fault, cut
        with self._lock:
            self.count += 1
            self.rows.append(_new_entry((self.count, at, took, request, response)))

    @property
    def dropped(self) -> int:
        """How many are not kept any more."""
        return self.count - len(self.rows)

    def forget(self) -> None:
        """Drop all; the next one's number is 1."""
        with self._lock:
            self.rows.clear()
            self.count = 0


# ---- a rule of what goes wrong on purpose

#: What a fault does, one of them; `latency` goes with any, or stands alone.
EFFECTS = ("status", "reset", "empty", "truncate", "hang", "trickle")


class Fault:
    """A rule of what goes wrong on purpose, and how often it did.

    `rule` is as it was asked for, `operations` names those that it is about, as in
    "PUT /api/v1/customers/{identifier}".
    """

    __slots__ = ("fired", "id", "matched", "operations", "rule")

    id: int
    rule: Attributes
    operations: FrozenSet[str]
    matched: int
    fired: int

    def __init__(self, id: int, rule: Json, operations: FrozenSet[str]) -> None:
        self.id, self.rule, self.operations = id, rule, operations
        self.matched = self.fired = 0

    @property
    def sequence(self) -> Sequence[Attributes]:
        """What it does one time after the other, each beside the rest of the rule."""
        return cast(Sequence[Attributes], self.rule.get("responses", ()))

    def stroke(self) -> Fault:
        """The rule as it is for the request that has just fired it. Under the lock."""
        if not self.sequence:
            return self
        rest = {name: value for name, value in self.rule.items() if name != "responses"}
        one = Fault(self.id, {**rest, **self.sequence[self.fired - 1]}, self.operations)
        one.matched = self.matched
        return one

    @property
    def effect(self) -> str:
        """Which of the EFFECTS it has, or "latency"."""
        return next((name for name in EFFECTS if name in self.rule), "latency")

    @property
    def spent(self) -> bool:
        """Whether it has fired as often as it may."""
        return self.fired >= (len(self.sequence) or self.rule.get("times", math.inf))

    def fires(self) -> bool:
        """Count a request that matches; whether it is one that goes wrong. Under the lock."""
        if self.spent:
            return False
        self.matched += 1
        turn = self.matched - self.rule.get("after", 0)
        if turn <= 0 or turn % self.rule.get("every", 1):
            return False
        fires = bool(self._chance("fires") < self.rule.get("probability", 1))
        self.fired += fires
        return fires

    def _chance(self, what: str) -> float:
        """From 0 to 1, by seed and count: the same each time, whoever else throws dice."""
        from random import Random

        return Random(f"{self.rule.get('seed', 0)} {what} {self.matched}").random()

    def delay(self) -> float:
        """For how long to wait this time, in seconds."""
        latency, jitter = self.rule.get("latency", 0), self.rule.get("jitter", 0)
        return float(max(0, latency + jitter * (2 * self._chance("delay") - 1)))

    def record(self) -> Json:
        """The rule as `/__parlel/faults` shows it."""
        counts = {"matched": self.matched, "fired": self.fired, "active": not self.spent}
        return {"id": self.id, **self.rule, **counts}


class Faults:
    """The rules of what goes wrong on purpose, by number; they outlive a reset of the state."""

    rows: Dict[int, Fault]
    last: int

    def __init__(self) -> None:
        self.rows, self.last = {}, 0
        self.lock = threading.RLock()
        #: Those that may still fire.
        self.armed: Tuple[Fault, ...] = ()

    def add(self, rule: Json, operations: FrozenSet[str]) -> Fault:
        """Let something go wrong from now on."""
        with self.lock:
            self.last += 1
            fault = self.rows[self.last] = Fault(self.last, rule, operations)
            self.rearm()
        return fault

    def remove(self, id: Optional[str] = None) -> List[Fault]:
        """Take one rule away, or all; gives what was there."""
        with self.lock:
            gone = [f for f in self.rows.values() if id is None or str(f.id) == id]
            for fault in gone:
                del self.rows[fault.id]
            self.rearm()
        return gone

    def forget(self) -> None:
        """Begin again, with number 1."""
        with self.lock:
            self.remove()
            self.last = 0

    def rearm(self) -> None:
        """Note which rules may still fire, after a change to them. Under the lock."""
        self.armed = tuple([fault for fault in self.rows.values() if not fault.spent])

    def records(self) -> List[Json]:
        """All rules, oldest first."""
        with self.lock:
            return [fault.record() for fault in self.rows.values()]


# ---- the whole service without a socket

#: So many keys of dropped workspaces are known, so that late calls with them are refused.
MAX_FORMER_KEYS = 3000


class Changes:
    """Which lists have changed, made out when somebody asks, so that it costs nobody else."""

    def __init__(self) -> None:
        #: How often something had changed when somebody looked.
        self.number = 0
        #: The activities by then, and what stood for each list; another sign is a change.
        self.noted, self.signs = 0, cast(Dict[str, Any], {})
        self._changed: Dict[str, int] = {}
        self.lock = threading.Lock()

    def note(self, signs: Dict[str, Any], noted: int) -> None:
        """Compare what stands for the lists now, by name. Under the lock."""
        others = [name for name, sign in signs.items() if self.signs.get(name) != sign]
        self.number += bool(others)
        self._changed = {**self._changed, **dict.fromkeys(others, self.number)}
        self.signs, self.noted = signs, noted

    def since(self, number: int) -> List[str]:
        """The lists that have changed since; all of them for a number from before our time."""
        since = number if number <= self.number else 0
        return [name for name, changed in self._changed.items() if changed > since]


class Fake:
    """The whole service without a socket: requests in, responses out."""

    def __init__(
        self, settings: Settings, seed: Json = None, root: Optional[Fake] = None, name: str = ""
    ) -> None:
        """Begin with a workspace that is empty, or filled by a seed document.

        `root` is the fake that this one is a further workspace of, by this `name`.
        """
        self.settings, self._seed, self.root, self.name = settings, seed, root or self, name
        self.closed = False
        #: Some switch is on that makes calls fail which the real service would not carry out.
        self.strict = settings.rate_limits or settings.broadcast_limit or settings.strict_fields
        #: The base URL of the server, once one listens.
        self.listens = ""
        #: Set when the server stops; who waits on purpose waits no longer then.
        self.ending: threading.Event = root.ending if root else threading.Event()
        #: Takes what is not needed any more; a server frees it when it has nothing better to do.
        self.discard: Callable[[Any], None] = lambda thing: None
        #: Further workspaces by name, and by each of their keys; replaced, never changed.
        self.others: Dict[str, Fake] = {}
        self._owners: Dict[str, Optional[Fake]] = {}
        #: Keys of workspaces that are gone; they own nothing.
        self._former: Deque[str] = deque(maxlen=MAX_FORMER_KEYS)
        self._naming = threading.Lock()
        #: Held by whoever moves the clock.
        self.turning = threading.RLock()
        #: What is not state, and so outlives a reset of the state.
        self.journal, self.faults, self.changes = Journal(settings.journal), Faults(), Changes()
        #: How many workspaces there have been.
        self.begun = 0
        self.workspace: Workspace
        self.outbox: Outbox
        self._begin(self._seeded(seed))

    def _begin(self, workspace: Workspace) -> None:
        """Go on with a workspace, and send reports of what happens in it from now on."""
        self.workspace, self.outbox = workspace, Outbox(workspace, self.settings.signing_key)
        self.begun += 1
        outbox = self.outbox
        workspace.occasions.join(
            reported=outbox.heard,
            subscription=outbox.heard_of,
            rested=outbox.wake,
            called=outbox.call,
        )
        me = weakref.ref(self)
        workspace.address = lambda: me_.address() if (me_ := me()) else ""

    def address(self) -> str:
        """The base URL of links that no request has brought about."""
        settings, root = self.settings, self.root
        place = settings.public_url.rstrip("/") or root.listens
        place = place or f"http://{settings.host}:{settings.port}"
        return f"{place}/@{self.name}" if self.name else place

    def put_in(self, workspace: Workspace) -> None:
        """Go on with another workspace, such as one out of a snapshot."""
        old, outbox = self.workspace, self.outbox
        self._begin(workspace)
        outbox.close(wait=False)
        old.occasions.forget()
        old.agenda.closed = True
        if old.news.waiting:  # for what will happen in the new one
            old.news.tell()
        if not self.closed:
            self.outbox.open()
        self.root.discard(old)

    def _seeded(self, seed: Json, old: Optional[Workspace] = None) -> Workspace:
        """A new workspace with what a seed describes, keeping what a reset leaves of an old one."""
        workspace = Workspace(self.settings)
        if old is not None:
            workspace.clock.move_to(old.clock.now(), old.clock.frozen)
        if seed is not None:
            seed_workspace(workspace, seed)
        if self.settings.webhook:
            row = {"endpoint": self.settings.webhook, "events": list(WEBHOOK_EVENTS)}
            SEEDERS["reporting_webhooks"](workspace, row, "--webhook")
        return workspace

    @property
    def seeded_with(self) -> Json:
        """The seed to which resets return, if there is one."""
        return self._seed

    def reset(self, only: str = "") -> None:
        """Start afresh, as if just begun, or with the state or one of the RESETS `only`."""
        if only in RESETS:
            RESETS[only](self)
            return
        if not only:
            self._forget()
        self.put_in(self._seeded(self._seed, self.workspace if only == "state" else None))

    def _forget(self) -> None:
        self.journal.forget()
        self.faults.forget()

    def seed(self, document: Json) -> None:
        """Start afresh with a seed, to which later resets return.

        Raises ApiError 400 naming what is wrong with the document; nothing changes then.
        """
        workspace = self._seeded(document)
        self._forget()
        self.put_in(workspace)
        self._seed = document

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen here: it has been dropped, or the server stops."""
        return self.closed or self.ending.is_set()

    # ---- further workspaces, each a world of its own

    @property
    def all(self) -> List[Fake]:
        """The default workspace and the further ones."""
        return [self, *self.others.values()]

    def add(self, name: str = "", seed: Json = None) -> Fake:
        """Make a workspace with fresh keys. Raises ApiError 409 if there is one of this name."""
        from secrets import token_hex

        keys: Dict[str, Any] = {key: token_hex(10) for key in WORKSPACE_KEYS}
        with self._naming:
            name = name or f"w-{token_hex(4)}"
            if name in self.others:
                raise ApiError(409, f"there is a workspace '{name}' already")
            other = Fake(replace(self.settings, seed="", state="", **keys), seed, self, name)
            self.others = {**self.others, name: other}
            self._note_owners()
        return other

    def remove(self, name: str) -> None:
        """Let go of a further workspace. Raises ApiError 404 if there is none of this name."""
        with self._naming:
            other = self.named(name)
            self.others = {key: fake for key, fake in self.others.items() if fake is not other}
            self._former += other.keys
            self._note_owners()
        other.close()
        other.workspace.occasions.forget()
        self.discard(other)

    def _note_owners(self) -> None:
        owners = {key: fake for fake in self.others.values() for key in fake.keys}
        self._owners = {**dict.fromkeys(self._former), **owners}

    @property
    def keys(self) -> List[str]:
        """The keys that say whose a request is."""
        return [self.settings.site_id, self.settings.app_key, self.settings.write_key]

    def named(self, name: str) -> Fake:
        """A further workspace. Raises ApiError 404 if there is none of this name."""
        if name not in self.others:
            known = ", ".join(self.others) or "none yet: make one with POST /__parlel/workspaces"
            raise ApiError(404, f"there is no workspace '{name}'; there are {known}")
        return self.others[name]

    def of(self, request: Request) -> Fake:
        """Whose a request is: by a path like `/@name/…`, `?workspace=name`, or its key.

        Unknown keys belong to the default workspace. Raises ApiError 404 for an unknown name,
        401 for a key of a workspace that is gone: late calls of one test are not for the next.
        """
        if self.root is not self:
            return self
        if request.by_path or _take_workspace(request):
            return self.named(request.prefix[2:])
        other = (
            self._owners.get(key_of(request, self.settings.max_body), self)
            if self._owners
            else self
        )
        if other is None:
            raise ApiError(401, "the workspace of this key was dropped")
        if other is not self:
            request.prefix = f"/@{other.name}"  # links lead back to where they come from
        return other

    def open(self) -> None:
        """Let things run in the background again."""
        self.ending.clear()
        self.closed = False
        self.workspace.agenda.open()
        self.outbox.open()
        for other in self.others.values():
            other.open()

    def close(self) -> None:
        """End what runs in the background."""
        self.closed = True
        self.workspace.agenda.close()
        self.outbox.close()
        for other in self.others.values():
            other.close()

    def handle(self, request: Request) -> Response:
        """Answer a request and write it into the journal; whatever goes wrong is an answer, too."""
        fake, began = self, time.perf_counter()
        try:
            if self._owners or request.by_path or request.path[1:2] == "@" or request.query_text:
                fake = self.of(request)
            workspace = fake.workspace
            response = fake._answer(request)
        except ApiError as error:  # it names a workspace that there is not
            workspace, response = self.workspace, failure(SHARED, error)
        operation = request.operation
        if response.later:
            return response
        if operation is None or operation.api is not CONTROL:
            # What was refused before its body was read may be larger than it looks.
            packed = "content-encoding" in request.headers
            if request.size > MAX_KEPT_BODY or (packed and request.inflates_beyond(MAX_KEPT_BODY)):
                request.cut(self.settings.max_body)
            took, at = time.perf_counter() - began, workspace.clock.now()
            fake.journal.add(at, took, request, response)
        request.read = _UNREAD
        if workspace.news.waiting:
            workspace.news.tell()
        return response

    def _answer(self, request: Request) -> Response:
        api = SHARED
        try:
            if request.method == "OPTIONS":
                return _preflight(request)
            operation = request.operation or find_operation(request)
            api = operation.api
            if request.made is not None:
                return _answer_made(api, request)
            if api is not SHARED or request.method != "GET":
                self.admit(api, request)
            if self.workspace.agenda.tick():
                _let_look(request, api)
            return self._handled(request, operation)
        except TakesTime:
            request.made = functools.partial(self._answer, request)
            return _LATER
        except NotANumber as error:
            return self._not_a_number(api, request, error)
        except ApiError as error:
            return self._refused(api, request, error)
        except Exception as error:
            return self._bug(api, request, error)

    def _handled(self, request: Request, operation: Operation) -> Response:
        arguments = request.arguments
        if "%" in request.path:
            arguments = [*map(decoded, arguments)]
        call = _new_call((self, self.workspace, request, operation))
        if self.strict:
            self._check_strictly(call)
        hurried = threading.get_ident() in HURRIED
        if self.faults.armed and not hurried:
            return self._at_risk(call, arguments)
        result = operation.handler(call, *arguments)
        if hurried and is_for_a_thread(result):
            request.made = result
            return _LATER
        return answer(operation.api, result)

    def _check_strictly(self, call: Call) -> None:
        settings, operation = self.settings, call.operation
        if operation.api.name == "app" and (settings.rate_limits or settings.broadcast_limit):
            check_rate(call.workspace, settings, operation, call.request)
        if settings.strict_fields:
            check_known_fields(call)

    def _refused(self, api: Api, request: Request, error: ApiError) -> Response:
        operation = request.operation
        if operation is None:  # a wrong base URL is the commonest first mistake
            log.warning("%d: %s", error.status, error.message)
            if self.settings.html_404 and request.path[:3] != "/__":
                return html_404(error)
        elif operation.fields and operation.fields.example and error.status == 400:
            error = operation.fields.exemplified(error)
        return failure(api, error)

    def is_heavy(self, request: Request) -> bool:
        """Whether a request belongs into a thread of its own."""
        try:
            fake = self.of(request) if self._owners else self
            operation = find_operation(request)
        except ApiError:  # `handle` will say so
            return False
        armed = fake.faults.armed
        return operation.heavy or bool(armed and concerning(armed, operation))

    def _at_risk(self, call: Call, arguments: Sequence[str]) -> Response:
        """Answer while there are faults: one of them may have its way."""
        fault = fault_for(call)
        if fault is None:
            return self._outcome(call, arguments)
        late, response = fault.rule["when"] == "after", Response()
        log.info("fault %d: %s for %s", fault.id, fault.effect, call.request.target)
        if not late:
            self._hold_up(call, fault)
        if late or fault.effect == "latency":
            response = self._outcome(call, arguments)
        if late:
            self._hold_up(call, fault)
        return spoiled(call.operation.api, fault, response)

    def _hold_up(self, call: Call, fault: Fault) -> None:
        """Wait as long as a fault says, its rule stands, and somebody waits for the answer."""
        end = time.monotonic() + fault.delay()
        while (left := end - time.monotonic()) > 0 and call.request.awaited():
            if fault.id not in self.faults.rows or self.ending.wait(min(left, 0.1)):
                return

    def _outcome(self, call: Call, arguments: Sequence[str]) -> Response:
        """What a call comes to; a refusal is an answer, too."""
        api, handler = call.operation.api, call.operation.handler
        try:
            return answer(api, handler(call, *arguments))
        except NotANumber as error:
            return self._not_a_number(api, call.request, error)
        except ApiError as error:
            return self._refused(api, call.request, error)

    def admit(self, api: Api, request: Request) -> None:
        """Check the credentials. Raises ApiError 401, or 403 for what web pages may not do."""
        fields = request.headers  # browsers say where a call comes from, programs don't
        if request.method != "GET" and ("origin" in fields or "sec-fetch-site" in fields):
            check_page(self.settings, request)
        try:
            if self.settings.region_check:
                check_region(self.settings, request)
            # Who names the workspace need not have its keys, unless the server wants some.
            lenient = request.by_path and not self.root.settings.has_keys
            api.check(self.root.settings if lenient else self.settings, request)
        except ValueError as error:
            log.warning("401 for %s %s: %s", request.method, request.path, error)
            headers = (*api.challenge, (REASON_HEADER, str(error)))
            raise Unauthorized(401, "Unauthorized request", headers=headers) from None

    def _not_a_number(self, api: Api, request: Request, error: ApiError) -> Response:
        """Track answers 200 to NaN and stores nothing (observed); we say so."""
        if api not in (TRACK, TRACK_OPEN):
            return failure(api, error)
        operation = cast(Operation, request.operation)
        name = operation.handler.__name__
        self.workspace.drop(name, ("path", request.path), error.message)
        return answer(api, Outcome("invalid", error.message))

    def _bug(self, api: Api, request: Request, error: Exception) -> Response:
        # One line, not a traceback: a test's log should stay readable. DEBUG has the rest.
        log.error("500 for %s %s: %r", request.method, request.path, error)
        log.debug("traceback", exc_info=error)
        text = f"internal error of the fake, please report it: {error!r}"
        return failure(api, ApiError(500, text[:500]))


def _let_look(request: Request, api: Api) -> None:
    """Raises TakesTime for who looks at a workspace while what is due there is not yet done."""
    if request.method == "GET" and api is not SHARED:
        raise TakesTime


def is_for_a_thread(result: Any) -> bool:
    """Whether the loop had better not make an answer of what a handler gave."""
    return callable(result) or (isinstance(result, (dict, list)) and is_bulky(result))


def _answer_made(api: Api, request: Request) -> Response:
    """Make an answer of what the loop has left to a thread: what a handler gave, or a function."""
    result, request.made = request.made, None
    return answer(api, result() if callable(result) else result)


#: What can be reset alone, and how; "state" is everything else.
RESETS: Dict[str, Callable[[Fake], Any]] = {
    "journal": lambda fake: fake.journal.forget(),
    "faults": lambda fake: fake.faults.remove(),
    # The real time again; what was due stays due.
    "clock": lambda fake: fake.workspace.clock.move_to(time.time(), False),
}

#: What a further workspace has of its own, so that nobody else's calls reach it.
WORKSPACE_KEYS = ("site_id", "api_key", "app_key", "write_key", "signing_key")


def _take_workspace(request: Request) -> bool:
    """Move the name of a workspace from path or query to the prefix; whether there is one."""
    if request.path.startswith("/@"):
        name, _, rest = request.path[2:].partition("/")
        request.path = "/" + rest
    elif request.path.startswith("/__parlel/") and "workspace" in request.query():
        query = request.query()
        name = query.pop("workspace")
        request.query_text = urlencode(query)
    else:
        return False
    request.prefix, request.by_path = f"/@{name}", True
    return True


def key_of(request: Request, limit: int) -> str:
    """The key that says whose a request is: site id, write key or app key; "" if there is none.

    `limit` is for inflating, in bytes.
    """
    header = request.headers.get("authorization", "")
    try:
        if not header and _OF_AN_SDK.search(request.path):
            return written_key(request, limit)
        bearer = header[:7].lower() == "bearer "
        return bearer_token(header) if bearer else basic_pair(header)[0]
    except (ValueError, ApiError):
        return ""


# The operations of the browser and mobile SDKs, which send no header with a key.
_OF_AN_SDK = re.compile(r"/v1/+([abgipst]|projects/[^/]+/settings)$")


class Rate(NamedTuple):
    """At most `most` requests in `period` seconds, for the operations that `pattern` matches."""

    pattern: Pattern[str]
    most: int
    period: float


#: The published limits of the App API, the first that matches counts (reference of 2026).
RATES = (
    Rate(re.compile(r"POST /v1/campaigns/[^/]+/triggers"), 1, 10),
    Rate(re.compile(r"POST /v1/send/.*"), 3000, 3),
    Rate(re.compile(r"GET .*/archived_message"), 100, 86400),
    Rate(
        re.compile(r"\w+ /v1/design_studio/.*/(link|publish|render|preview|review|inbox_previews)"),
        5,
        1,
    ),
    Rate(re.compile(r".*"), 10, 1),
)


def check_rate(
    workspace: Workspace, settings: Settings, operation: Operation, request: Request
) -> None:
    """Count a request against its limit, on the workspace's clock. Raises ApiError 429."""
    rate = next(r for r in RATES if r.pattern.fullmatch(f"{operation.method} {operation.path}"))
    if rate is RATES[0]:
        key = f"trigger {request.arguments[0]}"
    elif not settings.rate_limits:
        return
    else:
        key = rate.pattern.pattern
    with workspace.lock:
        now, times = workspace.clock.now(), workspace.calls.setdefault(key, deque())
        while times and times[0] <= now - rate.period:
            times.popleft()
        if len(times) >= rate.most:
            raise _too_many(workspace, rate, times[0] + rate.period - now)
        times.append(now)


def _too_many(workspace: Workspace, rate: Rate, wait: float) -> ApiError:
    reference = f"{workspace.count('reference') * 0x9E3779 & 0xFFFFFF:06x}"
    text = f"rate limited to {rate.most} requests per {rate.period:g}s (reference {reference})"
    # A daily quota comes without Retry-After (reference).
    headers = [] if rate.period >= 86400 else [("Retry-After", str(math.ceil(wait) or 1))]
    return ApiError(429, text, headers=headers)


# ---- strict fields: what the real service passes over in silence is refused on request


def check_known_fields(call: Call) -> None:
    """Raises ApiError 400 for fields that an operation does not have, with the nearest it has."""
    fields = call.operation.fields
    body = call.json() if fields and not fields.free else None
    if fields and isinstance(body, dict):
        label = f"{call.operation.method} {call.operation.path}"
        problems = list(fields.strange(body, f"is no field of {label} (--strict-fields)"))
        if problems:
            raise ApiError(400, *problems)


class Unauthorized(ApiError):
    """A 401, which looks the same in Track and App (observed)."""


class Call(NamedTuple):
    """What a handler is given: the request and the world it is about."""

    fake: Fake
    workspace: Workspace
    request: Request
    operation: Operation

    @property
    def base_url(self) -> str:
        """Where links in what is sent lead: the URL under which the caller reaches us."""
        return self.request.base_url(self.fake.settings)

    def json(self, depth: int = MAX_DEPTH) -> Json:
        """The body as any JSON value."""
        return self.request.json(self.fake.settings.max_body, depth)

    def body(self) -> Json:
        """The body as an object; none and null count as empty. Raises ApiError 400."""
        value = self.request.json(self.fake.settings.max_body)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise invalid(f"the body must be a JSON object, not {kind_of(value)}")
        return value

    def fields(self) -> Json:
        """What the body has of the fields of the operation. Raises ApiError for a wrong one."""
        return cast(FieldList, self.operation.fields).read(self.body())


#: Like `Call(*fields)`, but with no Python code in between.
_new_call = cast(Callable[[Tuple[Any, ...]], Call], functools.partial(tuple.__new__, Call))


def answer(api: Api, result: Any) -> Response:
    """Make a response of what a handler gave.

    A Response stays as it is; an Outcome is an empty success `{}`, with the reason why nothing
    happened; None is the same without one; anything else is JSON.
    """
    if result is DONE or not result:
        return Response(200, b"{}\n", api.headers)
    if isinstance(result, Response):
        return result
    if isinstance(result, Outcome):
        return with_reason(Response(200, b"{}\n", api.headers), result.text)
    return Response(200, api.write(result), api.headers)


def with_reason(response: Response, reason: str) -> Response:
    """Tell in a header why nothing, or less than it seems, happened."""
    if reason:
        response.headers = (*response.headers, (REASON_HEADER, _header_text(reason)))
    return response


def failure(api: Api, error: ApiError) -> Response:
    """Make a response of an error."""
    envelope, write = api.envelope, api.write
    if isinstance(error, Unauthorized) and api is not PIPELINES:
        envelope, write = meta_error, pretty
    headers = (*api.headers, *((k, _header_text(v)) for k, v in error.headers))
    return Response(error.status, write(envelope(error)), headers, error.close)


def html_404(error: ApiError) -> Response:
    """What the real hosts answer to an unknown path or method: a page, 404 (observed)."""
    page = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"
    return with_reason(Response(404, page, _HTML_PAGE), error.message)


_HTML_PAGE = (("Content-Type", "text/html; charset=utf-8"),)


def _header_text(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:1000]


# ---- faults: what goes wrong on purpose

#: What an error says unless the rule has a body, where it is known (observed; reference); the
#: others say what their status means.
FAULT_TEXTS = {
    401: "Unauthorized request",
    429: "rate limited to 10 requests per 1s (reference a1b2c3)",
}
_BODILESS = (204, 205, 304)


def concerning(faults: Iterable[Fault], operation: Operation) -> List[Fault]:
    """Those of the faults that are about an operation."""
    label = f"{operation.method} {operation.path}"
    return [fault for fault in faults if label in fault.operations]


def fault_for(call: Call) -> Optional[Fault]:
    """The first rule whose turn it is; the rules behind it don't count this request."""
    faults = concerning(call.fake.faults.armed, call.operation)
    people, events = mentioned(call) if faults else (set(), set())
    with call.fake.faults.lock:
        for fault in faults:
            if _is_about(fault.rule["match"], call, people, events) and fault.fires():
                if fault.spent:
                    call.fake.faults.rearm()
                return fault.stroke()
    return None


def _is_about(match: Json, call: Call, people: Set[str], events: Set[str]) -> bool:
    from fnmatch import fnmatchcase

    if "event" in match and match["event"].strip() not in events:
        return False
    if "person" in match and people.isdisjoint(_known_as(call.workspace, match["person"])):
        return False
    path = re.sub("/+", "/", unquote(call.request.path))
    return fnmatchcase(path, match.get("path", "*"))


def person_called(people: People, text: str) -> Optional[Person]:
    """The person with this id, email or cio_id, which may have the prefix of Track's paths."""
    return (
        people.find(("id", text))
        or people.find(("email", text))
        or people.find(("cio_id", bare_cio_id(text)))
    )


def _known_as(workspace: Workspace, text: str) -> Set[str]:
    """A person's identifiers: a rule that names one of them is about all."""
    person = person_called(workspace.people, text)
    names = {str(name) for name in person.identifiers().values() if name} if person else set()
    return {
        _name_key(name) for name in (*names, text, *({"cio_" + person.cio_id} if person else ()))
    }


def _name_key(value: Json) -> str:
    text = as_text(value)
    return text.lower() if "@" in text else text


# Where requests name people, in their path, their body, or parts of it.
_NAMING_ARGUMENTS = ("identifier", "customer_id", "email_address")
_NAMING_FIELDS = (
    "id", "email", "cio_id", "phone", "anonymous_id", "userId", "anonymousId", "customer_id", "to",
)  # fmt: skip
_NAMING_PARTS = ("identifiers", "primary", "secondary", "traits", "data")


def mentioned(call: Call) -> Tuple[Set[str], Set[str]]:
    """Whom and which events a request names, as far as can be seen."""
    request, operation = call.request, call.operation
    places = re.findall(r"\{(\w+)\}", operation.path)
    named = zip(places, request.arguments)
    people = {_name_key(unquote(text)) for place, text in named if place in _NAMING_ARGUMENTS}
    try:
        body, query = call.json(), request.query()
    except ApiError:
        return people, set()
    items = _items_of(body)
    parts = [query, *items, *(part_of(item, name) for item in items for name in _NAMING_PARTS)]
    people |= {_name_key(part[name]) for part in parts for name in _NAMING_FIELDS if name in part}
    return people, events_named(request, body)


def spoiled(api: Api, fault: Fault, response: Response) -> Response:
    """What is left of an answer; its status is 0 if there is none."""
    if fault.effect == "status":
        response = _fault_answer(api, fault.rule)
    elif fault.effect in ("reset", "empty", "hang"):
        response = Response(0)
    response.fault = fault
    return with_reason(response, f"fault {fault.id}: {fault.effect}, {fault.rule['when']}")


def _fault_answer(api: Api, rule: Json) -> Response:
    """An error in the words of its API, unless the rule has words of its own."""
    status = rule["status"]
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else f"status {status}"
    headers = [("Retry-After", as_text(rule["retry_after"]))] if "retry_after" in rule else []
    kind = Unauthorized if status == 401 else ApiError
    response = failure(api, kind(status, FAULT_TEXTS.get(status, phrase), headers=headers))
    body = rule.get("body", {})
    if "body" in rule or status < 400:
        response.body = body.encode() if isinstance(body, str) else api.write(body)
    if status in _BODILESS:
        response.body = b""
    return response


_METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
_PREFLIGHT = (
    ("Access-Control-Allow-Methods", _METHODS),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Strict-Mode"),
    ("Access-Control-Max-Age", "7200"),
)


def _preflight(request: Request) -> Response:
    """Answer OPTIONS: 204, with leave to call for browsers where the real API gives it."""
    path = plain_path(request.path)
    apis = [row.api for row in ROUTES if row.pattern.fullmatch(path)]
    origin = [h for api in apis[:1] for h in api.headers if h[0] == _ANY_ORIGIN[0]]
    return Response(204, b"", (("Allow", _METHODS), *origin, *(_PREFLIGHT if origin else ())))


# ======================================================================================
# ==== §19 Track API
# ======================================================================================

MAX_ENTITY = 32 * 1024
MAX_BATCH = 500 * 1024


def named_in_path(call: Call, value: str) -> Identifier:
    """What `{identifier}` in a v1 path means. Raises ApiError 400."""
    return named_by_shape(call.workspace, value, "identifier")


def named_by_shape(workspace: Workspace, value: str, name: str) -> Identifier:
    """Whom a value means whose shape says what it is (reference). Raises ApiError 400.

    A `cio_` prefix makes a cio_id, an email's shape an email, anything else an id.
    """
    if value.startswith("cio_"):
        return checked_cio_id(value[4:])
    kinds = workspace.people.kinds
    if "email" in kinds and "@" in value and _EMAIL_SHAPE.fullmatch(value):
        return "email", identifier_text(value, name)
    if "id" not in kinds:
        raise invalid(f"{name} must be an email: this workspace knows people by nothing else", name)
    return "id", identifier_text(value, name)


def checked_cio_id(value: str) -> Identifier:
    """Raises ApiError 400 for what is no cio_id of this workspace."""
    if is_foreign(value):
        raise ApiError(400, "invalid identifier")
    return "cio_id", value


_ATTRIBUTES = FieldList(free="attributes, by any name").having(
    scalar="id email phone cio_id", any="_update", number="_timestamp", object="cio_relationships"
)


@route("PUT", "/api/v1/customers/{identifier}", TRACK, fields=_ATTRIBUTES)
def identify(call: Call, identifier: str) -> Outcome:
    """Add or update a person."""
    who = named_in_path(call, identifier)
    body = checked_attributes(call.body(), "body")
    workspace = call.workspace
    other = "id" in body and who[0] == "id" and as_text(body["id"] or who[1]) != who[1]
    if other and call.fake.settings.identifiers == "id":
        raise invalid("id attribute and identifier are not the same value", "id")
    verb, refs = _v1_relationships(body.get("cio_relationships"))
    when = whole_number(body.get("_timestamp"), "_timestamp")
    create = body.get("_update") is not True
    reason = workspace.ingest(workspace.people.identify, who, body, when, create)
    if reason.kind in ("suppressed", "unknown") or not refs:
        return reason
    return both(reason, *[_relate(workspace, verb, who, *ref) for ref in refs])


def _v1_relationships(value: Json) -> Tuple[str, List[Tuple[ObjectKey, Attributes]]]:
    """v1 wraps the list of v2 in `{action, relationships}` (reference)."""
    if value is None:
        return "add", []
    if not isinstance(value, dict):
        raise invalid("cio_relationships must be an object", "cio_relationships")
    verb = chosen(value, "action", _RELATIONSHIP_ACTIONS)
    return verb, relationship_list(value.get("relationships"), object_key)


_RELATIONSHIP_ACTIONS = {"add_relationships": "add", "delete_relationships": "delete"}


def _relate(
    workspace: Workspace, verb: str, who: Identifier, ref: ObjectKey, attributes: Attributes
) -> Outcome:
    if verb == "add":
        return workspace.ingest(workspace.objects.add_relationship, who, ref, attributes)
    return workspace.ingest(workspace.objects.delete_relationship, who, ref)


@route("DELETE", "/api/v1/customers/{identifier}", TRACK)
def delete(call: Call, identifier: str) -> Outcome:
    """Delete a person."""
    return call.workspace.ingest(call.workspace.people.delete, named_in_path(call, identifier))


@route("POST", "/api/v1/customers/{identifier}/suppress", TRACK, fields=NO_FIELDS)
def suppress(call: Call, identifier: str) -> Outcome:
    """Delete a person and keep their identifiers from coming back."""
    return call.workspace.ingest(call.workspace.people.suppress, named_in_path(call, identifier))


@route("POST", "/api/v1/customers/{identifier}/unsuppress", TRACK, fields=NO_FIELDS)
def unsuppress(call: Call, identifier: str) -> Outcome:
    """Free the identifiers of a suppressed person."""
    return call.workspace.ingest(call.workspace.people.unsuppress, named_in_path(call, identifier))


@route("POST", "/api/v1/customers/{identifier}/events", TRACK, fields=EVENT_FIELDS["data"])
def track(call: Call, identifier: str) -> Outcome:
    """Track an event, page or screen view of a person."""
    who, body = named_in_path(call, identifier), call.body()
    event = event_of("", body, size=call.request.size)
    return both(call.workspace.ingest(call.workspace.events.track, who, event), doubt(event))


@route("POST", "/api/v1/events", TRACK, fields=EVENT_FIELDS["data"])
def track_anonymous(call: Call) -> Outcome:
    """Track an event of somebody who is not identified yet, or invite somebody."""
    body = call.body()
    event = event_of("anonymous", body)
    anonymous_id = body.get("anonymous_id")
    who, hint = ("anonymous_id", ""), DONE
    if anonymous_id not in (None, ""):
        who = ("anonymous_id", identifier_text(anonymous_id, "anonymous_id"))
    elif not event.data.get("recipient"):
        text = "nobody's event: without an anonymous_id, or a data.recipient to invite, it stays so"
        hint = Outcome("partial", text)
    workspace = call.workspace
    return both(workspace.ingest(workspace.events.track_anonymous, who, event), doubt(event), hint)


_DEVICE = NO_FIELDS.having("device", device=object_field(DEVICE_FIELDS))


@route("PUT", "/api/v1/customers/{identifier}/devices", TRACK, fields=_DEVICE)
def add_device(call: Call, identifier: str) -> Outcome:
    """Add or update a device of a person."""
    who = named_in_path(call, identifier)
    return add_device_of(call.workspace, who, call.body().get("device"), "id")


@route("DELETE", "/api/v1/customers/{identifier}/devices/{device_id}", TRACK)
def delete_device(call: Call, identifier: str, device_id: str) -> Outcome:
    """Delete a device of a person."""
    who = named_in_path(call, identifier)
    return call.workspace.ingest(call.workspace.devices.delete_device, who, device_id)


_MERGE = NO_FIELDS.having("primary secondary", object="primary secondary")


@route("POST", "/api/v1/merge_customers", TRACK_MERGE, fields=_MERGE)
def merge_customers(call: Call) -> Outcome:
    """Merge two people; the secondary one is deleted."""
    return call.workspace.ingest(call.workspace.people.merge, *sides_of_merge(call, call.body()))


def sides_of_merge(call: Call, body: Json) -> List[Identifier]:
    """Who a `{primary, secondary}` body is about. Raises ApiError 400."""
    kinds = (*call.workspace.people.kinds, "cio_id")
    sides = [one_identifier(body.get(side), kinds, side) for side in ("primary", "secondary")]
    for kind, value in sides:
        if kind == "cio_id":
            checked_cio_id(value)
    return sides


def add_device_of(workspace: Workspace, who: Identifier, device: Json, token_key: str) -> Outcome:
    """Add or update a device of a person."""
    return workspace.ingest(
        workspace.devices.add_device, who, *device_of(device, token_key, workspace.seconds())
    )


_PUSH_EVENT = LAX.having(
    "event", event=choice_field(*PUSH_METRICS), any="delivery_id device_id", number="timestamp"
)


@route("POST", "/api/v1/push/events", TRACK, fields=_PUSH_EVENT)
@route("POST", "/push/events", TRACK_OPEN, fields=_PUSH_EVENT)
def track_push(call: Call) -> Outcome:
    """Report what a device did with a push notification."""
    body, workspace = call.body(), call.workspace
    given, who = _PUSH_EVENT.read(body), _delivery_named(body)
    timestamp = whole_number(given.get("timestamp"), "timestamp")
    event = Event("push", given["event"], body, "push", timestamp, "")
    return both(workspace.ingest(workspace.deliveries.record_push, who, event), doubt(event))


def _delivery_named(body: Json) -> Identifier:
    """The delivery of a report. Raises ApiError 400 for what can be no id (mobile SDKs' tests)."""
    delivery_id = as_text(body.get("delivery_id") or "")
    if not re.fullmatch(r"[\w-]{1,150}={0,2}", delivery_id, re.ASCII):
        raise invalid(f"malformed delivery id: {delivery_id[:MAX_IDENTIFIER]}.", "delivery_id")
    return "delivery_id", delivery_id


_IN_APP_EVENT = LAX.having(
    "event", event=choice_field(*CHANNEL_METRICS["in_app"]), any="delivery_id metadata",
    number="timestamp",
)  # fmt: skip
_WRAPPED = {"type": choice_field("in_app"), "payload": object_field(_IN_APP_EVENT)}
_REPORT = _PUSH_EVENT._replace(needed=()).having("", **_WRAPPED)


@route("POST", "/api/v1/cio_deliveries/events", TRACK, fields=_REPORT)
def track_delivery(call: Call) -> Outcome:
    """Report what a device did with an in-app message, as the mobile SDKs wrap it, or a push."""
    body, workspace = call.body(), call.workspace
    if "payload" not in body:
        return track_push(call)
    payload = NO_FIELDS.having("type payload", **_WRAPPED).read(body)["payload"]
    who, metadata = _delivery_named(payload), payload.get("metadata")
    when = whole_number(payload.get("timestamp"), "payload.timestamp")
    more, take = {"metadata": metadata}, workspace.deliveries.record_metric
    return workspace.ingest(take, who, payload["event"], when, "", more)


REGION_URLS = {"us": "https://track.customer.io", "eu": "https://track-eu.customer.io"}


@route("GET", "/api/v1/accounts/region", TRACK)
def account_region(call: Call) -> Json:
    """Tell the region and the workspace that the credentials belong to."""
    region = call.fake.settings.region
    return {"url": REGION_URLS[region], "region": region, "environment_id": WORKSPACE_NUMBER}


@route("GET", "/auth", SHARED)
def auth_page(call: Call) -> Response:
    """Answer 200 with a page, whatever the credentials: it tells nothing about them (observed)."""
    page = b"<!DOCTYPE html>\n<html><head><title>Customer.io</title></head><body></body></html>\n"
    return Response(200, page, _HTML_PAGE)


_METRIC = LAX.having(
    "delivery_id metric", delivery_id=read_field("a string", identifier_text),
    metric=choice_field(*METRICS), number="timestamp", any="recipient reason href metadata",
)  # fmt: skip


@route("POST", "/api/v1/metrics", TRACK_OPEN, fields=_METRIC)
def report_metrics(call: Call) -> Outcome:
    """Report what happened to a delivery."""
    body, workspace = call.fields(), call.workspace
    when = whole_number(body.get("timestamp"), "timestamp")
    more = {name: body.get(name) for name in ("recipient", "href", "metadata")}
    who, metric = ("delivery_id", as_text(body["delivery_id"])), body["metric"]
    reason = as_text(body.get("reason") or "")
    return workspace.ingest(workspace.deliveries.record_metric, who, metric, when, reason, more)


@route(
    "POST", "/unsubscribe/{delivery_id}", TRACK_OPEN, fields=NO_FIELDS.having(flag="unsubscribe")
)
def unsubscribe(call: Call, delivery_id: str) -> Outcome:
    """Unsubscribe a person by a delivery that they got."""
    workspace = call.workspace
    if "json" not in call.request.headers.get("content-type", ""):
        raise invalid("Content-Type must be application/json")
    if delivery_id not in workspace.deliveries.rows:
        raise invalid(f"there is no delivery '{delivery_id}'", "delivery_id")
    wanted = call.body().get("unsubscribe")
    if not isinstance(wanted, bool):
        text = "nothing to do: the body says neither unsubscribe: true nor false"
        return Outcome("needless", text)
    verb = workspace.deliveries.unsubscribe if wanted else workspace.deliveries.resubscribe
    return workspace.ingest(verb, ("delivery_id", delivery_id), delivery_id)


#: Fields that a form names itself by; they are no attributes (reference).
FORM_KEYS = ("form_id", "form_name", "form_type", "form_url", "form_url_param")


def _wrong_form(value: Json) -> str:
    if not isinstance(value, dict):
        return f"must be an object, not {kind_of(value)}"
    odd = ((name, part) for name, part in value.items() if not isinstance(part, (str, type(None))))
    return next((f".{name} must be a string, not {kind_of(part)}" for name, part in odd), "")


_FORM = Check("an object with the form's fields", _wrong_form)


@route("POST", "/api/v1/forms/{form_id}/submit", TRACK, fields=NO_FIELDS.having("data", data=_FORM))
def submit_form(call: Call, form_id: str) -> Response:
    """Submit a form; its fields become attributes of the person."""
    workspace = call.workspace
    call.body()
    with workspace.lock:  # the form is made even if the submission is refused (reference)
        submissions = workspace.forms.setdefault(form_id, [])
    data = call.fields()["data"]
    given = {kind: data.get(kind) for kind in workspace.people.kinds}
    who = one_identifier(given, workspace.people.kinds, "data")
    checked = checked_attributes({k: v for k, v in data.items() if k not in FORM_KEYS}, "data")
    outcome = workspace.ingest(workspace.people.identify, who, checked)
    submissions.append({"data": data, "received_at": workspace.seconds()})
    for tell in workspace.occasions.submitted:
        tell(form_id, data, who)
    return with_reason(Response(204, b"", TRACK.headers), outcome.text)


_IDS = LAX.having("ids", ids=list_field(typed_field(int, str), 1, MAX_SEGMENT_IDS, "identifier"))


def _segment_change(call: Call, segment_id: str, verb: Callable[..., Outcome]) -> Outcome:
    kind = call.request.query().get("id_type", "id")
    if kind not in ("id", "email", "cio_id"):
        raise invalid("id_type must be id, email or cio_id", "id_type")
    ids = call.fields()["ids"]
    if not re.fullmatch(r"\d{1,9}", segment_id):
        raise invalid("segment_id must be a number", "segment_id")
    segment = call.workspace.segments.rows.get(int(segment_id))
    if segment is not None and segment.type != "manual":
        raise invalid(f"segment {segment_id} is not a manual segment", "segment_id")
    people = [(kind, as_text(value)) for value in ids]
    return call.workspace.ingest(verb, ("segment", segment_id), int(segment_id), people)


@route("POST", "/api/v1/segments/{segment_id}/add_customers", TRACK, fields=_IDS)
def add_to_segment(call: Call, segment_id: str) -> Outcome:
    """Add people to a manual segment."""
    return _segment_change(call, segment_id, call.workspace.segments.add_to_segment)


@route("POST", "/api/v1/segments/{segment_id}/remove_customers", TRACK, fields=_IDS)
def remove_from_segment(call: Call, segment_id: str) -> Outcome:
    """Take people out of a manual segment."""
    return _segment_change(call, segment_id, call.workspace.segments.remove_from_segment)


# ---- v2: one entity or a batch of them


def named_in_body(call: Call, item: Json) -> Identifier:
    """The person a v2 item is about. Raises ApiError 400."""
    kinds = (*call.workspace.people.kinds, "cio_id")
    who = one_identifier(item.get("identifiers"), kinds, "identifiers")
    return checked_cio_id(who[1]) if who[0] == "cio_id" else who


#: A checked v2 item, ready to be carried out; gives the reason why nothing happened, or "".
Action = Callable[[], Outcome]


def _person_identify(call: Call, item: Json) -> Action:
    who, workspace = named_in_body(call, item), call.workspace
    attributes = checked_attributes(item.get("attributes"), "attributes")
    refs = relationship_list(item.get("cio_relationships"), object_key)
    when = whole_number(item.get("timestamp"), "timestamp")
    create = attributes.get("_update") is not True

    def act() -> Outcome:
        reason = workspace.ingest(workspace.people.identify, who, attributes, when, create)
        if reason.kind in ("suppressed", "unknown"):
            return reason
        return both(reason, *[_relate(workspace, "add", who, *ref) for ref in refs])

    return act


def _person_event(call: Call, item: Json) -> Action:
    workspace = call.workspace
    type = item["action"]
    event = event_of("", {**item, "type": type}, "attributes")
    identifiers = item.get("identifiers")
    if isinstance(identifiers, dict) and set(identifiers) == {"anonymous_id"}:
        event.kind = "anonymous"
        who = one_identifier(identifiers, ("anonymous_id",), "identifiers")
        return lambda: both(
            workspace.ingest(workspace.events.track_anonymous, who, event), doubt(event)
        )
    who = named_in_body(call, item)
    return lambda: both(workspace.ingest(workspace.events.track, who, event), doubt(event))


def _person_content(call: Call, item: Json) -> Action:
    """Somebody saw, or clicked in, content that was no delivery to them (Segment's destination)."""
    if part_of(item, "attributes").get("contentId") in (None, ""):
        raise required("attributes.contentId", "the number of the content")
    return _person_event(call, {**item, "name": item["action"]})


def _person_verb(call: Call, item: Json) -> Action:
    who = named_in_body(call, item)
    verb = getattr(call.workspace.people, item["action"])
    return lambda: call.workspace.ingest(verb, who)


def _person_merge(call: Call, item: Json) -> Action:
    return functools.partial(
        call.workspace.ingest, call.workspace.people.merge, *sides_of_merge(call, item)
    )


def _person_relationships(call: Call, item: Json) -> Action:
    who, refs = (
        named_in_body(call, item),
        relationship_list(item.get("cio_relationships"), object_key),
    )
    if not refs:
        raise required("cio_relationships", "a list of at least one relationship")
    verb = _RELATIONSHIP_ACTIONS[item["action"]]
    return lambda: both(*(_relate(call.workspace, verb, who, *ref) for ref in refs))


def _person_add_device(call: Call, item: Json) -> Action:
    who = named_in_body(call, item)
    workspace = call.workspace
    device = device_of(item.get("device"), "token", workspace.seconds())
    return lambda: workspace.ingest(workspace.devices.add_device, who, *device)


def _person_delete_device(call: Call, item: Json) -> Action:
    who, device = named_in_body(call, item), part_of(item, "device")
    token = device.get("token") or device.get("id")
    if token in (None, ""):
        raise required("device.token", "the push token")
    workspace = call.workspace
    return lambda: workspace.ingest(workspace.devices.delete_device, who, as_text(token))


def _object_people(item: Json, *kinds: str) -> List[Tuple[Identifier, Attributes]]:
    return relationship_list(
        item.get("cio_relationships"), lambda value, name: one_identifier(value, kinds, name)
    )


def _object_identify(call: Call, item: Json) -> Action:
    ref, workspace = object_key(item.get("identifiers"), "identifiers"), call.workspace
    attributes = checked_attributes(item.get("attributes"), "attributes")
    if _longer(as_text(attributes), MAX_OBJECT_ATTRIBUTES):
        text = f"attributes cannot be larger than {MAX_OBJECT_ATTRIBUTES} bytes"
        raise invalid(text, "attributes")
    anonymous = item["action"] == "identify_anonymous"
    kinds = ("anonymous_id",) if anonymous else (*workspace.people.kinds, "cio_id")
    people = _object_people(item, *kinds)
    return lambda: both(
        workspace.ingest(workspace.objects.identify_object, ("object_id", ref[1]), ref, attributes),
        *(_relate(workspace, "add", who, ref, extra) for who, extra in people),
    )


def _object_delete(call: Call, item: Json) -> Action:
    ref, workspace = object_key(item.get("identifiers"), "identifiers"), call.workspace
    return lambda: workspace.ingest(workspace.objects.delete_object, ("object_id", ref[1]), ref)


def _object_relationships(call: Call, item: Json) -> Action:
    ref = object_key(item.get("identifiers"), "identifiers")
    people = _object_people(item, *call.workspace.people.kinds, "cio_id")
    if not people:
        raise required("cio_relationships", "a list of at least one relationship")
    verb = _RELATIONSHIP_ACTIONS[item["action"]]
    return lambda: both(*(_relate(call.workspace, verb, who, ref, a) for who, a in people))


def _delivery_event(call: Call, item: Json) -> Action:
    delivery_id = one_identifier(item.get("identifiers"), ("id",), "identifiers")[1]
    if item.get("name") not in PUSH_METRICS:
        raise invalid(f"name must be one of: {', '.join(PUSH_METRICS)}", "name")
    token = part_of(item, "attributes").get("device_token")
    more = {"device_id": push_token(token, "attributes.device_token")}
    workspace, who = call.workspace, ("delivery_id", delivery_id)
    when = whole_number(item.get("timestamp"), "timestamp")
    return lambda: workspace.ingest(
        workspace.deliveries.record_metric, who, item["name"], when, "", more
    )


#: What v2 can do: a type and an action of it, and how the item is read.
ENTITY_ACTIONS: Dict[str, Dict[str, Callable[[Call, Json], Action]]] = {
    "person": {
        "identify": _person_identify, "delete": _person_verb,
        "event": _person_event, "page": _person_event, "screen": _person_event,
        "viewed_content": _person_content, "clicked_content": _person_content,
        "add_relationships": _person_relationships, "delete_relationships": _person_relationships,
        "add_device": _person_add_device, "delete_device": _person_delete_device,
        "merge": _person_merge, "suppress": _person_verb, "unsuppress": _person_verb,
    },
    "object": {
        "identify": _object_identify, "identify_anonymous": _object_identify,
        "delete": _object_delete, "add_relationships": _object_relationships,
        "delete_relationships": _object_relationships,
    },
    "delivery": {"event": _delivery_event},
}  # fmt: skip


def entity_action(call: Call, item: Json) -> Action:
    """Check one v2 item. Raises ApiError 400 naming the field; nothing has happened then."""
    if not isinstance(item, dict):
        raise invalid(f"each item must be an object, not {kind_of(item)}")
    actions = chosen(item, "type", ENTITY_ACTIONS)
    return cast(Action, chosen(item, "action", actions)(call, item))


_ACTION_NAMES = dict.fromkeys(name for rows in ENTITY_ACTIONS.values() for name in rows)
#: What any of the actions takes.
ENTITY_FIELDS = NO_FIELDS.having(
    "type action", type=choice_field(*ENTITY_ACTIONS), action=choice_field(*_ACTION_NAMES),
    number="timestamp", object="identifiers attributes primary secondary", scalar="id",
    cio_relationships=list_field(
        object_field(NO_FIELDS.having(object="identifiers relationship_attributes"))
    ),
    name=bytes_field(MAX_EVENT_NAME), device=object_field(DEVICE_FIELDS),
)  # fmt: skip
_AN_ENTITY = ANYTHING._replace(type="an entity", inner=lambda item: ENTITY_FIELDS)
_BATCH = LAX.having("batch", batch=list_field(_AN_ENTITY, 1, of="operation"))


@route("POST", "/api/v2/entity", TRACK_V2, fields=ENTITY_FIELDS)
def entity(call: Call) -> Outcome:
    """Create, update or delete one person, object or delivery."""
    body = call.body()
    if call.request.size > MAX_ENTITY:
        raise invalid(f"the request cannot be larger than {MAX_ENTITY} bytes")
    return entity_action(call, body)()


@route("POST", "/api/v2/batch", TRACK_V2, fields=_BATCH)
def batch(call: Call) -> Any:
    """Do what several entity requests say, in order; bad items don't keep the others back."""
    body = call.json()
    items = _BATCH.read(body if isinstance(body, dict) else {"batch": body})["batch"]
    if call.request.size > MAX_BATCH:
        raise invalid(f"the request cannot be larger than {MAX_BATCH} bytes", "batch")
    workspace = call.workspace
    with workspace.lock:
        outcomes = [_batch_item(call, i, item) for i, item in enumerate(items)]
        problems = [problem for problem in outcomes if isinstance(problem, Problem)]
        if len(problems) == len(items):
            raise ApiError(400, *(problem._replace(batch_index=None) for problem in problems))
        workspace.keep_batch("track", items)
    if problems:
        errors = {"errors": [_problem_row(problem) for problem in problems]}
        dropped = both(*[outcome for outcome in outcomes if isinstance(outcome, Outcome)])
        return with_reason(Response(207, TRACK_V2.write(errors), TRACK_V2.headers), dropped.text)
    return both(*cast(List[Outcome], outcomes))


def _batch_item(call: Call, index: int, item: Json) -> Union[Outcome, Problem]:
    """Carry out one item; gives its Problem, or what became of it."""
    try:
        if call.request.size > MAX_ENTITY and len(compact(item)) > MAX_ENTITY:
            raise invalid(f"an item cannot be larger than {MAX_ENTITY} bytes")
        return entity_action(call, item)()
    except ApiError as error:
        return error.problems[0]._replace(batch_index=index)


# ======================================================================================
# ==== §20 App API
# ======================================================================================


def not_found(workspace: Workspace) -> ApiError:
    """The App API's 404 of a resource: a fresh ULID is its reference (observed)."""
    reference = ulid(workspace.clock.now(), workspace.count("reference"))
    return ApiError(404, f"not found (reference {reference})")


def bad_request(workspace: Workspace, error: ApiError) -> ApiError:
    """The App API's 400 of what is no JSON (docs); the header says why."""
    reference = not_found(workspace).message.partition(" (")[2]
    return ApiError(400, f"bad request ({reference}", headers=[(REASON_HEADER, error.message)])


def shelved(call: Call, kind: str, id: Any) -> Json:
    """The row of a shelf with this id. Raises ApiError 404."""
    shelf = call.workspace.shelves[kind]
    if id in shelf.rows:
        return shelf.rows[id]
    if not shelf.open:
        raise not_found(call.workspace)
    return shelf.add({}, id, is_write(call))


def is_write(call: Call) -> bool:
    """Whether a call may change what later ones answer."""
    return call.operation.method != "GET"


def paged(call: Call, name: str, rows: Sequence[Any], default: int = 100, most: int = 1000) -> Json:
    """One page of rows under a name, by the query's `start` and `limit`, and the next one's token.

    A token is the base64 of a position (observed). Raises ApiError 400.
    """
    found, more = selected(call, rows, lambda row: True, default, most)
    return {name: found, "next": more}


def page_start(call: Call, default: int) -> int:
    """The position that the query's `start` stands for. Raises ApiError 400."""
    token = call.request.query().get("start", "")
    try:
        return int(base64.b64decode(token, validate=True)) if token else default
    except ValueError:
        raise invalid("start must be the `next` of an earlier answer", "start") from None


def page_token(position: int) -> str:
    """The `next` that leads to a position."""
    return base64.b64encode(str(position).encode()).decode()


def selected(
    call: Call, rows: Sequence[Any], wanted: Predicate, default: int, most: int
) -> Tuple[List[Any], str]:
    """One page of the rows that a predicate selects; looks no further than the page needs."""
    limit = query_number(call.request.query(), "limit", default, 1, most)
    found: List[Any] = []
    for position in range(max(0, page_start(call, 0)), len(rows)):
        if wanted(rows[position]):
            if len(found) == limit:
                return found, page_token(position)
            found.append(rows[position])
    return found, ""


def query_number(query: Dict[str, str], name: str, default: int, least: int, most: int) -> int:
    """A whole number out of the query; above `most` counts as `most`. Raises ApiError 400."""
    number = whole_number(query.get(name) or None, name)
    if number is None:
        return default
    if number < least:
        raise invalid(f"{name} must be at least {least}", name)
    return min(number, most)


def query_flag(query: Dict[str, str], name: str) -> bool:
    """A yes or no out of the query, no if it is missing. Raises ApiError 400."""
    return bool(query_choice(query, name, {"true": True, "1": True, "false": False, "0": False}))


def query_choice(
    query: Dict[str, str], name: str, choices: Union[Json, Sequence[str]], default: Any = None
) -> Any:
    """One of some words out of the query, or what a table makes of it. Raises ApiError 400."""
    word = query.get(name) or None
    if word is None:
        return default
    if word not in choices:
        raise invalid(f"{name} must be one of: {', '.join(choices)}", name)
    return choices[word] if isinstance(choices, dict) else word


def path_number(workspace: Workspace, text: str) -> int:
    """A resource's number in a path; anything else is not found."""
    if not re.fullmatch(r"\d{1,15}", text):
        raise not_found(workspace)
    return int(text)


def person_kinds(call: Call) -> Sequence[str]:
    """What `id_type` may be: what the workspace knows people by (reference)."""
    return (*call.workspace.people.kinds, "cio_id")


def person_of(call: Call, value: str) -> Person:
    """The person in an App path; the query's `id_type` says what the value is.

    Without it an id or a bare cio_id (field reports); unlike Track, App does not look at the
    value's shape (observed). Raises ApiError 400 or 404.
    """
    kind, people = None, call.workspace.people
    if call.request.query_text:
        kind = query_choice(call.request.query(), "id_type", person_kinds(call))
    if kind == "cio_id" and value.startswith("cio_"):
        value = value[4:]
    person = people.find((kind or "id", value))
    if person is None and kind is None:
        person = people.find(("cio_id", value))
    if person is None:
        raise not_found(call.workspace)
    return person


@route("GET", "/v1/customers/{customer_id}/attributes", APP)
def get_attributes(call: Call, customer_id: str) -> Response:
    """Read a person's attributes and devices."""
    with call.workspace.lock:
        person = person_of(call, customer_id)
        document = {"customer": person_document(call.workspace, person)}
    return Response(200, compact(document), APP.headers)  # the limits of attributes keep it small


def person_document(workspace: Workspace, person: Person) -> Json:
    """A person as the App API gives it: values are strings, keys in byte order (observed)."""
    attributes = person.all_attributes()
    stamps = {"id": person.created_at, "cio_id": person.created_at, **person.timestamps}
    for name, (value, when) in computed_attributes(workspace, person).items():
        attributes[name], stamps[name] = value, when
    names = sorted(attributes)  # the order of code points is that of UTF-8, too
    return {
        "id": person.id,
        "identifiers": person.identifiers(),
        "attributes": {
            name: value if isinstance(value := attributes[name], str) else as_text(value)
            for name in names
        },
        "timestamps": {name: stamps[name] for name in names},
        "unsubscribed": person.unsubscribed(),
        "devices": [*map(device_document, person.has.devices.values())],
    }


def computed_attributes(workspace: Workspace, person: Person) -> Dict[str, Tuple[Json, int]]:
    """What nobody sets: values with their timestamps, which for preferences is 0 (reference)."""
    computed: Dict[str, Tuple[Json, int]] = {}
    topics = workspace.shelves["topics"].rows.values()
    if topics:
        wanted = {topic_name(topic): subscribed_to(workspace, person, topic) for topic in topics}
        computed[COMPUTED[0]] = ({"topics": wanted}, 0)
    emails = [d for d in person.has.deliveries if d.channel == "email" and "sent" in d.metrics]
    if emails:
        last = max(delivery.metrics["sent"] for delivery in emails)
        computed[COMPUTED[1]] = (last, last)
    return computed


def device_document(device: Device) -> Json:
    """A device as the App API gives it: with a blank status before its first push (reference)."""
    return {
        "id": device.token,
        "platform": device.platform,
        "last_used": device.last_used,
        "attributes": {LAST_STATUS: "", **device.attributes},
    }


@route("GET", "/v1/customers", APP)
def get_people_by_email(call: Call) -> Json:
    """Find the people with an email address."""
    email = call.request.query().get("email")
    if not email:
        raise required("email", "an address in the query string")
    with call.workspace.lock:
        people = call.workspace.people.with_email(email)
        rows = [{"email": p.email, "id": p.id or None, "cio_id": p.cio_id} for p in people]
    return {"results": rows}


#: The most that a send may take beside its attachments, in bytes (docs).
MAX_SEND = 1000 * 1000


def send_body(call: Call) -> Json:
    """The body of a send. Raises ApiError 400 in the service's words for what isn't one."""
    try:
        body = call.body()
    except ApiError as error:
        raise _not_sendable(error.message, error.status) from None
    files = {} if body.get("attachments") is None else body["attachments"]
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise _not_sendable("attachments must map file names to base64 strings")
    size = len(call.request.body) - sum(map(len, files.values()))
    if size > MAX_SEND:
        raise _not_sendable(f"{size} bytes beside the attachments; {MAX_SEND} at most")
    return body


_SERVICE_ACCOUNT = re.compile("bearer +sa_live_", re.IGNORECASE)


def _sent(workspace: Workspace, delivery: Delivery, mail: Mail, told: Response) -> Response:
    dispatch(workspace, delivery, mail)
    return told


def _not_sendable(reason: str, status: int = 400) -> ApiError:
    """The service's one sentence for bodies that it can't read (docs); the header says why."""
    words = "Request entity must be JSON encoded and not exceed 2048 KB."
    return ApiError(status, words, headers=[(REASON_HEADER, reason)])


def send_message(call: Call) -> Any:
    """Send a transactional message through the channel that the path names."""
    # A service account has several workspaces, so its calls name one.
    workspace, headers = call.workspace, call.request.headers
    channel = call.operation.path.split("/")[3]
    service = _SERVICE_ACCOUNT.match(headers.get("authorization", ""))
    if service and not headers.get("x-workspace-id"):
        raise invalid("workspace_id is required")  # the command-line client's tests
    try:
        delivery, mail = accept(workspace, channel, send_body(call), call.base_url)
    except Misread as error:
        raise _not_sendable(error.message) from None
    scheduled = {} if delivery.send_at is None else {"send_at": delivery.send_at}
    # `queued` is the reference fake's; the real answer ends after send_at (reference).
    moments = {"queued_at": delivery.created, **scheduled, "queued": True}
    told = answer(APP_SEND, {"delivery_id": delivery.delivery_id, **moments})
    if mail is None:
        return with_reason(told, delivery.failure if delivery.person is None else "")
    try:
        dispatch(workspace, delivery, mail)
    except TakesTime:
        return functools.partial(_sent, workspace, delivery, mail, told)
    return told


for _channel, _fields in SEND_FIELDS.items():
    route("POST", f"/v1/send/{_channel}", APP_SEND, fields=_fields)(send_message)


@route("POST", "/v1/webhook/{token}", APP_OPEN, fields=FieldList(free="the webhook's data"))
def incoming_webhook(call: Call, token: str) -> Json:
    """Start the campaigns of an incoming webhook; any JSON is their `trigger`."""
    known = re.fullmatch(r"[0-9a-f]{16}", token) is not None
    if not known or not receive_webhook(call.workspace, token, call.json()):
        raise ApiError(404, f"no campaign has the webhook '{token:.40}'")
    return {}


@route("POST", "/v1/campaigns/{broadcast_id}/triggers", APP, True, TRIGGER_FIELDS)
def trigger(call: Call, broadcast_id: str) -> Json:
    """Trigger a broadcast."""
    number, shelf = path_number(call.workspace, broadcast_id), call.workspace.shelves["broadcasts"]
    if not shelf.open and number not in shelf.rows:
        raise ApiError(404, f"broadcast with id {number} does not exist")  # Go client's tests
    label = call.request.headers.get("content-type", "application/json")
    if "json" not in label.lower():
        raise ApiError(422, f"Content-Type must be application/json, not {label}")  # docs
    try:
        body = call.body()
    except ApiError as error:
        raise bad_request(call.workspace, error) from None
    started = trigger_broadcast(call.workspace, number, body)
    send_broadcast(call.workspace, number, started, call.base_url)
    return {"id": started.number}


@route("GET", "/v1/exports", APP)
def list_exports(call: Call) -> Json:
    """List the exports; null when there are none."""
    rows = [export.record() for export in call.workspace.exports.values()]
    return {"exports": rows or None}


def export_of(call: Call, export_id: str) -> Export:
    """The export in a path. Raises ApiError 404."""
    export = call.workspace.exports.get(path_number(call.workspace, export_id))
    if export is None:
        raise not_found(call.workspace)
    return export


@route("GET", "/v1/exports/{export_id}", APP)
def get_export(call: Call, export_id: str) -> Json:
    """Read how far an export is."""
    return {"export": export_of(call, export_id).record()}


@route(
    "POST",
    "/v1/exports/customers",
    APP,
    True,
    LAX.having("filters", filter="filters"),
)
def create_people_export(call: Call) -> Json:
    """Export the people whom a filter selects."""
    export = export_people(call.workspace, call.fields()["filters"])
    return {"export": export.record(pending=True)}


@route("POST", "/v1/exports/deliveries", APP, True, EXPORT_FIELDS)
def create_deliveries_export(call: Call) -> Json:
    """Export the deliveries of a newsletter, campaign, action or transactional message."""
    return {"export": export_deliveries(call.workspace, call.fields()).record(pending=True)}


@route("GET", "/v1/exports/{export_id}/download", APP)
def download_export(call: Call, export_id: str) -> Json:
    """Get a signed link to an export's file; it works for 15 minutes."""
    link = download_link(call.workspace, export_of(call, export_id), call.base_url)
    # The Node client documents `link` in 5.0.1 and `url` in 5.2.0.
    return {"url": link, "link": link}


@route("GET", "/v1/exports/{export_id}/file", APP_OPEN, heavy=True)
def export_file(call: Call, export_id: str) -> Response:
    """The CSV behind a download link; needs no credentials."""
    export, query = export_of(call, export_id), call.request.query()
    expires = whole_number(query.get("expires"), "expires") or 0
    signature = link_signature(call.workspace, export.number, expires)
    if not hmac.compare_digest(signature.encode(), query.get("signature", "").encode()):
        raise ApiError(403, "this is not a link that /download gave out")
    if call.workspace.seconds() >= expires:
        raise ApiError(403, "this link has expired: links live for 15 minutes, ask /download again")
    export.downloads += 1
    name = f'attachment; filename="export-{export.number}.csv"'
    headers = (("Content-Type", "text/csv; charset=utf-8"), ("Content-Disposition", name))
    return Response(200, export.csv, (*headers, *SANDBOXED))


# ---- people and objects


def no_content() -> Response:
    """A 204."""
    return Response(204, b"", APP.headers)


def serve(
    method: str,
    path: str,
    summary: str,
    handler: Handler,
    heavy: bool = False,
    api: Api = APP,
    fields: Optional[FieldList] = None,
) -> None:
    """Put a handler that was made, not written, into the route table."""

    def named(call: Call, *arguments: str) -> Any:
        return handler(call, *arguments)

    named.__doc__ = summary
    route(method, path, api, heavy, fields)(named)


@route("POST", "/v1/customers", APP, True, LAX.having("filter", filter="filter"))
def search_people(call: Call) -> Json:
    """Find the people whom a filter selects."""
    workspace = call.workspace
    wanted = compile_filter(call.fields()["filter"], "filter", workspace.segments.is_member)
    with workspace.lock:
        people = list(workspace.people)
    found, more = selected(call, people, wanted, 50, 1000)
    return {**people_list(found), "next": more}


def people_list(people: Iterable[Person]) -> Json:
    """People as lists of the App API name them; `ids` has "" for people without id (reference)."""
    rows = [person.identifiers() for person in people]
    return {"identifiers": rows, "ids": [row["id"] or "" for row in rows]}


_SEVERAL = NO_FIELDS.having("ids", ids=list_field(ANYTHING, 0, 100, "id"))


@route("POST", "/v1/customers/attributes", APP, fields=_SEVERAL)
def get_many_attributes(call: Call) -> Json:
    """Read attributes and devices of several people; the unknown are left out."""
    ids = call.fields()["ids"]
    kind = query_choice(call.request.query(), "id_type", person_kinds(call)) or "id"
    with call.workspace.lock:
        people = [call.workspace.people.find((kind, as_text(value))) for value in ids]
        rows = [{"customer": person_document(call.workspace, p)} for p in people if p]
    return {"customers": rows}


@route("GET", "/v1/customers/{customer_id}/segments", APP, heavy=True)
def get_person_segments(call: Call, customer_id: str) -> Json:
    """List the segments that a person is in."""
    workspace = call.workspace
    with workspace.lock:
        person = person_of(call, customer_id)
        mine = [
            s
            for s in workspace.segments.rows.values()
            if workspace.segments.is_member(person, s.number)
        ]
        names = ("id", "name", "description")
        return {"segments": [{name: s.document()[name] for name in names} for s in mine]}


@route("GET", "/v1/customers/{customer_id}/relationships", APP)
def get_person_relationships(call: Call, customer_id: str) -> Json:
    """List the objects that a person is related to."""
    with call.workspace.lock:
        person = person_of(call, customer_id)
        things = [call.workspace.objects.rows[key] for key in person.has.relationships]
        rows = [
            {"object_type_id": int(t.key[0]), "identifiers": thing_names(t), **bond(person, t)}
            for t in things
        ]
    return paged(call, "cio_relationships", rows)


def thing_names(thing: Thing) -> Json:
    """The identifiers of an object."""
    return {"object_id": thing.key[1], "cio_object_id": thing.cio_object_id}


def bond(person: Person, thing: Thing) -> Json:
    """Attributes and timestamps of a relationship; either side shows them (field report)."""
    attributes = person.has.relationships[thing.key]
    return {"attributes": attributes, "timestamps": dict.fromkeys(attributes, thing.updated_at)}


@route("GET", "/v1/customers/{customer_id}/messages", APP)
def get_person_messages(call: Call, customer_id: str) -> Json:
    """List what was sent to a person."""
    with call.workspace.lock:
        return message_page(call, person_of(call, customer_id).has.deliveries)


@route("GET", "/v1/customers/{customer_id}/activities", APP, heavy=True)
def get_person_activities(call: Call, customer_id: str) -> Json:
    """List what happened to a person, newest first."""
    with call.workspace.lock:
        person = person_of(call, customer_id)
    return activity_page(call, lambda activity: activity.person is person)


@route("GET", "/v1/activities", APP, heavy=True)
def list_activities(call: Call) -> Json:
    """List what happened in the workspace, newest first."""
    query, people = call.request.query(), call.workspace.people
    deleted = query_flag(query, "deleted")
    if query.get("customer_id"):
        with call.workspace.lock:
            person = person_of(call, query["customer_id"])
        return activity_page(call, lambda activity: activity.person is person)
    return activity_page(call, lambda a: deleted or not a.person or a.person in people)


def activity_page(call: Call, wanted: Callable[[Activity], bool]) -> Json:
    """One page of activities by the query's type, name, start and limit."""
    query = call.request.query()
    type, name = query.get("type"), query.get("name")

    def fits(activity: Activity) -> bool:
        named = not name or activity.name == name or activity.tells_of(name)
        return named and (not type or activity.type == type) and wanted(activity)

    limit, last = query_number(query, "limit", 10, 1, 100), page_start(call, 1 << 60)
    with call.workspace.lock:
        newest = (
            a for a in reversed(call.workspace.ground.activities) if a.serial < last and fits(a)
        )
        found = list(islice(newest, limit + 1))
        rows = [activity_document(call.workspace, activity) for activity in found[:limit]]
    more = page_token(found[limit - 1].serial) if len(found) > limit else ""
    return {"activities": rows, "next": more}


def activity_document(workspace: Workspace, activity: Activity) -> Json:
    """An activity as the App API gives it; one of a deleted person shows nobody (docs)."""
    person, delivery = activity.person, activity.delivery
    known, data = person in workspace.people, activity.data()
    more = {}
    if delivery is not None:
        fate, type = fate_of(delivery), delivery_type(delivery)
        more = {"delivery_id": delivery.delivery_id}
        data = {**more, **data, **fate}
        more.update({"delivery_type": type} if type else {})
    if activity.type == "page":  # which v1 names by its URL
        more["url"] = as_text(data.get("url") or activity.name)
    return {
        "id": ulid(activity.when, activity.serial),
        "type": activity.type,
        "name": activity.name,
        "timestamp": int(activity.when),
        "customer_id": person.id or None if known and person else None,
        "data": data,
        **more,
        **({"customer_identifiers": person.identifiers()} if known and person else {}),
        **activity.told,
    }


def fate_of(delivery: Delivery) -> Json:
    """What an activity tells of its message: null where it can't be said (reference)."""
    delivered = delivery.metrics.get("delivered")
    opened = None if delivered is None else "opened" in delivery.metrics
    return {"delivery_id": delivery.delivery_id, "delivered": delivered, "opened": opened}


def delivery_type(delivery: Delivery) -> str:
    """What received a message: email, phone, ios or android (reference); "" for the others."""
    if delivery.channel == "push":
        return next(iter(delivery.devices.values()), "")
    return {"email": "email", "sms": "phone", "whatsapp": "phone"}.get(delivery.channel, "")


@route("GET", "/v1/object_types", APP)
def list_object_types(call: Call) -> Json:
    """List the object types: seeded ones, and those of objects that Track made."""
    with call.workspace.lock:
        seeded = call.workspace.shelves["object_types"].rows.values()
        rows = {as_text(row["id"]): row for row in seeded}
        for type_id, _ in call.workspace.objects.rows:
            rows.setdefault(type_id, {})
    return {"types": [object_type_document(type_id, row) for type_id, row in rows.items()]}


def object_type_document(type_id: str, row: Json) -> Json:
    """An object type as the App API gives it, with what nobody described."""
    name = row.get("name") or f"Object type {type_id}"
    slug = re.sub(r"\W+", "_", name.lower())
    one = {"singular_name": name, "singular_slug": row.get("slug") or slug}
    return {"name": name, "slug": slug, **one, "enabled": True, "icon": "", **row, "id": type_id}


_OBJECT_SEARCH = LAX.having(
    "object_type_id filter", object_type_id=ANYTHING._replace(type="the number of an object type"),
    filter="filter",
)  # fmt: skip


@route("POST", "/v1/objects", APP, True, _OBJECT_SEARCH)
def search_objects(call: Call) -> Json:
    """Find the objects of a type that a filter selects."""
    body, workspace = call.fields(), call.workspace
    type_id = body["object_type_id"]
    wanted = compile_filter(body["filter"], "filter", lambda thing, number: False)
    with workspace.lock:
        things = [t for t in workspace.objects.rows.values() if t.key[0] == as_text(type_id)]
    found, more = selected(call, things, wanted, 50, 1000)
    rows = [{"cio_object_id": t.cio_object_id, "object_id": t.key[1]} for t in found]
    return {"identifiers": rows, "ids": [t.key[1] for t in found], "next": more}


def object_of(call: Call, type_id: str, object_id: str) -> Thing:
    """The object in a path. Raises ApiError 404."""
    kinds = {"object_id": type_id, "cio_object_id": ""}
    kind = query_choice(call.request.query(), "id_type", kinds)
    thing = call.workspace.objects.find((type_id if kind is None else kind, object_id))
    if thing is None or thing.key[0] != type_id:
        raise not_found(call.workspace)
    return thing


@route("GET", "/v1/objects/{object_type_id}/{object_id}/attributes", APP)
def get_object_attributes(call: Call, object_type_id: str, object_id: str) -> Json:
    """Read an object's attributes."""
    with call.workspace.lock:
        thing = object_of(call, object_type_id, object_id)
        return {
            "object": {
                "object_type_id": thing.key[0],
                "identifiers": thing_names(thing),
                "attributes": {name: as_text(v) for name, v in thing.attributes.items()},
                "timestamps": thing.timestamps,
            }
        }


@route("GET", "/v1/objects/{object_type_id}/{object_id}/relationships", APP)
def get_object_relationships(call: Call, object_type_id: str, object_id: str) -> Json:
    """List the people whom an object is related to."""
    with call.workspace.lock:
        thing = object_of(call, object_type_id, object_id)
        kind = {"object_type_id": thing.key[0], "object_type_disabled": False}
        people = thing.people.values()
        rows = [{"identifiers": p.identifiers(), **kind, **bond(p, thing)} for p in people]
    return paged(call, "cio_relationships", rows)


# ---- segments


def segment_of(call: Call, segment_id: str) -> Segment:
    """The segment in a path. Raises ApiError 404."""
    segment = call.workspace.segments.rows.get(path_number(call.workspace, segment_id))
    if segment is None:
        raise not_found(call.workspace)
    return segment


@route("GET", "/v1/segments", APP)
def list_segments(call: Call) -> Json:
    """List the segments."""
    with call.workspace.lock:
        return {"segments": [s.document() for s in call.workspace.segments.rows.values()]}


_SEGMENT = NO_FIELDS.having("name", filled="name", text="description")


@route("POST", "/v1/segments", APP, fields=NO_FIELDS.having(segment=object_field(_SEGMENT)))
def create_segment(call: Call) -> Json:
    """Create a manual segment."""
    given = call.body().get("segment")
    if not isinstance(given, dict):
        raise required("segment", "an object with a name")
    name, workspace = given.get("name"), call.workspace
    if not isinstance(name, str) or not name.strip():
        raise ApiError(422, Problem("Name can't be blank", "name"))  # observed
    _SEGMENT.read(given)
    with workspace.lock:
        number = workspace.count("segment")
        while number in workspace.segments.rows:
            number = workspace.count("segment")
        segment = workspace.segments.rows[number] = Segment(number, name, workspace.seconds())
        segment.description = given.get("description") or ""
        return {"segment": segment.document()}


@route("GET", "/v1/segments/{segment_id}", APP)
def get_segment(call: Call, segment_id: str) -> Json:
    """Read a segment."""
    return {"segment": segment_of(call, segment_id).document()}


@route("DELETE", "/v1/segments/{segment_id}", APP)
def delete_segment(call: Call, segment_id: str) -> Response:
    """Delete a manual segment."""
    with call.workspace.lock:
        segment = segment_of(call, segment_id)
        if segment.type != "manual":
            raise invalid("only manual segments can be deleted through the API")
        for person in segment.members.values():
            person.has.segments.discard(segment.number)
        del call.workspace.segments.rows[segment.number]
    return no_content()


@route("GET", "/v1/segments/{segment_id}/customer_count", APP, heavy=True)
def count_segment(call: Call, segment_id: str) -> Json:
    """Count the people in a segment."""
    with call.workspace.lock:
        return {"count": len(call.workspace.segments.people_in(segment_of(call, segment_id)))}


@route("GET", "/v1/segments/{segment_id}/membership", APP, heavy=True)
def list_segment_people(call: Call, segment_id: str) -> Json:
    """List the people in a segment."""
    with call.workspace.lock:
        segment = segment_of(call, segment_id)
        people = list(segment.members.values())
        if segment.predicate is not None:
            people = list(call.workspace.people)
    number = segment.number
    with call.workspace.lock:
        found, more = selected(
            call,
            people,
            lambda person: call.workspace.segments.is_member(person, number),
            1000,
            30_000,
        )
    return {**people_list(found), "next": more}


@route("GET", "/v1/segments/{segment_id}/used_by", APP)
@route("GET", "/v1/segments/{segment_id}/dependencies", APP)
def segment_used_by(call: Call, segment_id: str) -> Json:
    """List what uses a segment."""
    with call.workspace.lock:
        number = segment_of(call, segment_id).number
        names = ("trigger_segment_ids", "filter_segment_ids", "recipient_segment_ids")
        return {
            "used_by": users_of(
                call.workspace, lambda row: any(number in (row.get(name) or ()) for name in names)
            )
        }


def users_of(workspace: Workspace, uses: Callable[[Json], bool]) -> Json:
    """The campaigns and newsletters that use something, by number (reference)."""
    campaigns = [row["id"] for row in workspace.shelves["campaigns"].rows.values() if uses(row)]
    letters = [row for row in workspace.shelves["newsletters"].rows.values() if uses(row)]
    return {
        "campaigns": campaigns,
        "sent_newsletters": [row["id"] for row in letters if row.get("sent_at")],
        "draft_newsletters": [row["id"] for row in letters if not row.get("sent_at")],
    }


# ---- messages


def tracked_responses(delivery: Delivery) -> Json:
    """When each response of an in-app message was first chosen; the numbers are inferred."""
    chosen: Dict[str, int] = {}
    for row in delivery.history if delivery.channel == "in_app" else ():
        if row["metric"] == "clicked" and row.get("tracked_response"):
            chosen.setdefault(as_text(row["tracked_response"]), row["timestamp"])
    return {name: {"id": id, "ts": ts} for id, (name, ts) in enumerate(chosen.items(), 1)}


def message_document(delivery: Delivery, responses: bool = False) -> Json:
    """A delivery as the App API's messages show it; parents that don't apply are null.

    `responses` asks for the tracked responses, too.
    """
    person, message = delivery.person, delivery.message
    names = (
        "newsletter_id", "content_id", "campaign_id", "broadcast_id", "action_id",
        "transactional_message_id",
    )  # fmt: skip
    nobody = {"id": delivery.customer_id, "email": None, "cio_id": ""}
    return {
        "id": delivery.delivery_id,
        "deduplicate_id": f"{delivery.delivery_id}:{max(delivery.metrics.values())}",
        "msg_template_id": delivery.template_id,
        "message_template_id": delivery.template_id,
        "parent_action_id": delivery.parents.get("parent_action_id"),
        "customer_id": delivery.customer_id,
        "customer_identifiers": person.identifiers() if person else nobody,
        "recipient": delivery.recipient,
        "subject": delivery.rendered.get("subject") or as_text(message.get("subject") or ""),
        "metrics": delivery.metrics,
        "created": delivery.created,
        "failure_message": delivery.failure or None,
        **{name: delivery.parents.get(name) for name in names},
        "trigger_event_id": delivery.origin.get("trigger_event_id"),
        "type": MESSAGE_TYPES.get(delivery.channel, delivery.channel),
        "forgotten": message.get("disable_message_retention") is True,
        **({"tracked_responses": tracked_responses(delivery)} if responses else {}),
        **delivery.told,
    }


def message_page(
    call: Call,
    deliveries: Sequence[Delivery],
    longest: int = MESSAGE_WINDOW,
    first: Optional[Tuple[int, int]] = None,
) -> Json:
    """One page of messages, newest first, by the query's filters (reference).

    A range counts up to `longest` seconds from its end; without one those since `first` (Unix
    seconds) for as many seconds, or the last six months.
    """
    query = call.request.query()
    begin, end = message_range(call, longest, first)
    wanted, limit = message_filter(call, begin, end), query_number(query, "limit", 50, 1, 1000)
    responses = query_flag(query, "get_tracked_responses")
    position = min(page_start(call, len(deliveries)), len(deliveries))
    found: List[Json] = []
    while position > 0 and len(found) < limit:
        position -= 1
        if wanted(deliveries[position]):
            found.append(message_document(deliveries[position], responses))
    return {"messages": found, "next": page_token(position) if position > 0 else ""}


MESSAGE_CHANNELS = (
    "email", "webhook", "twilio", "whatsapp", "slack", "push", "in_app", "inbox",
    "live_notification",
)  # fmt: skip


def message_range(
    call: Call, longest: int, first: Optional[Tuple[int, int]]
) -> Tuple[float, float]:
    """From when to when messages are listed, Unix seconds. Raises ApiError 400."""
    query, now = call.request.query(), call.workspace.seconds()
    start, end = (whole_number(query.get(n) or None, n) for n in ("start_ts", "end_ts"))
    if start is None and end is None:
        return (first[0], sum(first)) if first else (now - MESSAGE_WINDOW, math.inf)
    latest = now if end is None else end
    return max(start or 0, min(latest, now) - longest), math.inf if end is None else end


def message_filter(call: Call, start: float, end: float) -> Callable[[Delivery], bool]:
    """What the query asks of a message. Raises ApiError 400."""
    query = call.request.query()
    metric = query_choice(query, "metric", MESSAGE_METRICS)
    state = query_choice(query, "state", ("failed", "sent", "drafted", "attempted"))
    type = query_choice(query, "type", MESSAGE_CHANNELS)
    # Either drafts or all the others (reference).
    drafts = query_flag(query, "drafts") or state == "drafted"
    names = ("campaign_id", "newsletter_id", "action_id")
    parents = {n: whole_number(query[n], n) for n in names if query.get(n)}

    def wanted(delivery: Delivery) -> bool:
        metrics = delivery.metrics
        return (
            start <= delivery.created <= end
            and (not metric or metric in metrics)
            and (not state or state in metrics)
            and (not type or MESSAGE_TYPES.get(delivery.channel, delivery.channel) == type)
            and delivery.is_draft == drafts
            and all(delivery.parents.get(n) == number for n, number in parents.items())
        )

    return wanted


@route("GET", "/v1/messages", APP, heavy=True)
def list_messages(call: Call) -> Json:
    """List messages, newest first."""
    with call.workspace.lock:
        return message_page(call, list(call.workspace.deliveries.rows.values()))


def delivery_of(call: Call, delivery_id: str) -> Delivery:
    """The delivery in a path. Raises ApiError 404."""
    delivery = call.workspace.deliveries.rows.get(delivery_id)
    if delivery is None:
        raise not_found(call.workspace)
    return delivery


@route("GET", "/v1/messages/{message_id}", APP)
def get_message(call: Call, message_id: str) -> Json:
    """Read a message."""
    responses = query_flag(call.request.query(), "get_tracked_responses")
    with call.workspace.lock:
        return {"message": message_document(delivery_of(call, message_id), responses)}


@route("GET", "/v1/messages/{message_id}/archived_message", APP)
def get_archived_message(call: Call, message_id: str) -> Json:
    """Read what was sent; empty if its retention was off."""
    with call.workspace.lock:
        delivery = delivery_of(call, message_id)
        message = {**delivery.message, **delivery.rendered}
        message["preheader_text"] = message.get("preheader")
        forgotten = message.get("disable_message_retention") is True
    names = ("body", "from", "reply_to", "subject", "bcc", "preheader_text")
    texts = {name: "" if forgotten else as_text(message.get(name) or "") for name in names}
    more = {"fake_bcc": message.get("fake_bcc") is True, "headers": message.get("headers") or {}}
    named = {"id": delivery.delivery_id, "recipient": delivery.recipient, "forgotten": forgotten}
    return {"archived_message": {**texts, **more, **named}}


# ---- campaigns, broadcasts, newsletters, transactional messages


# ---- what is shown of them

_EMAIL_CONTENT = (
    "body", "body_amp", "language", "from", "from_id", "reply_to", "reply_to_id", "preprocessor",
    "recipient", "subject", "bcc", "cc", "fake_bcc", "preheader_text", "headers",
)  # fmt: skip
#: What the App API shows of an action, by its type; others look like an email (reference).
_ACTION_CONTENT: Dict[str, Sequence[str]] = {
    "twilio": ("layout", "language", "image_url", "recipient"),
    "webhook": ("layout", "url", "headers", "method"),
    "whatsapp": (
        "body_json", "language", "recipient", "sender_identity_id", "send_to_unsubscribed",
        "tracked",
    ),
}  # fmt: skip
_ACTION_BLANKS: Json = {
    "image_url": "", "url": "", "method": "post", "body_json": "", "sender_identity_id": 0,
    "send_to_unsubscribed": False, "tracked": True,
}  # fmt: skip


def content_document(family: Family, row: Json) -> Json:
    """A content (or action) as the App API gives it."""
    times, named = ("created", "updated"), {"deduplicate_id": f"{row['id']}:{row['updated']}"}
    if family is TRANSACTIONAL:
        return {name: row[name] for name in ("id", "name", "type", *times, *_EMAIL_CONTENT)}
    named[family.key] = row["_parent"]
    if family is NEWSLETTERS:
        return {**{n: row[n] for n in ("id", "name", "type", "layout", *_EMAIL_CONTENT)}, **named}
    own = _ACTION_CONTENT.get(row["type"], ("layout", *_EMAIL_CONTENT))
    names = ("id", "name", "type", *times, "sending_state", "body", "parent_action_id", *own)
    full = {**_ACTION_BLANKS, **row}
    if row["type"] == "twilio" and re.search(r"\{[{%]", as_text(full["recipient"])):
        full["recipient"] = ""  # Liquid is not shown here (reference)
    return {**{name: full[name] for name in names}, **named}


_NEWSLETTER_SHOWN = (
    "id", "name", "type", "sent_at", "created", "updated", "tags", "recipient_segment_ids",
    "subscription_topic_id",
)  # fmt: skip
_TEMPLATE_TYPES = {"twilio": "sms", "email": "email", "push": "push", "slack": "slack"}


def family_document(workspace: Workspace, family: Family, row: Json) -> Json:
    """A campaign, broadcast, newsletter or transactional message as the App API gives it."""
    if family is TRANSACTIONAL:
        return {name: value for name, value in shown(row).items() if name != "trigger_name"}
    contents = workspace.shelves[family.shelf].where(_parent=row["id"])
    more: Json = {"deduplicate_id": f"{row['id']}:{row['updated']}"}
    if family is NEWSLETTERS:
        plain = {name: row[name] for name in _NEWSLETTER_SHOWN if name in row}
        return {**plain, **more, "content_ids": [content["id"] for content in contents]}
    actions = [(c["id"], c["type"]) for c in contents if not c["parent_action_id"]]
    short = [{"id": n, "type": _TEMPLATE_TYPES[t]} for n, t in actions if t in _TEMPLATE_TYPES]
    more["first_started"] = row.get("first_started", row["created"])
    if family is BROADCASTS:
        named = [{"id": n, "type": _TEMPLATE_TYPES.get(t, t)} for n, t in actions]
        plain = {name: value for name, value in shown(row).items() if name != "recipients"}
        ids = row.get("msg_template_ids") or named
        return {**plain, **more, "actions": named, "msg_template_ids": ids}
    if row["type"] != "webhook":
        more["filter_segment_ids"] = row.get("filter_segment_ids") or []
    if row["type"] == "segment":
        more["trigger_segment_ids"] = row.get("trigger_segment_ids") or []
    named = [{"id": n, "type": t} for n, t in actions]
    short = row.get("msg_templates") or short
    return {**shown(row), **more, "actions": named, "msg_templates": short}


# ---- metrics: counts over recorded deliveries

#: What a metric series counts (reference of 2026).
METRIC_SERIES = (
    "attempted", "bounced", "clicked", "converted", "created", "deferred", "delivered", "drafted",
    "failed", "human_clicked", "human_opened", "link_untracked", "machine_clicked",
    "open_untracked", "opened", "prefetch_opened", "replied", "sent", "spammed", "suppressed",
    "topic_unsubscribed", "tracking_consent_denied", "tracking_consent_granted", "undeliverable",
    "unsubscribed", "untracked",
)  # fmt: skip
#: The periods of version 1 and the most steps of each (reference).
PERIODS = {"hours": 24, "days": 45, "weeks": 12, "months": 121}
RESOLUTIONS = {
    **{name: name for name in PERIODS},
    "hourly": "hours", "daily": "days", "weekly": "weeks", "monthly": "months",
}  # fmt: skip
#: Version 1 begins its days at 00:00 EST (reference).
EASTERN = timezone(timedelta(hours=-5))
MAX_BUCKETS = 100_000


def _begin_of(moment: datetime, period: str) -> datetime:
    """The begin of the hour, day, week (Sunday) or month that a moment is in."""
    if period == "hours":
        return moment.replace(minute=0, second=0, microsecond=0)
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "weeks":
        return day - timedelta(days=(day.weekday() + 1) % 7)
    return day.replace(day=1) if period == "months" else day


def _later(moment: datetime, period: str, steps: int) -> datetime:
    if period == "months":
        months = moment.year * 12 + moment.month - 1 + steps
        return moment.replace(year=months // 12, month=months % 12 + 1)
    return moment + timedelta(**{period: steps})


def period_edges(now: float, period: str, steps: int) -> List[float]:
    """Begins of the last `steps` periods, oldest first, and the end of the current one."""
    current = _begin_of(moment_of(now, EASTERN), period)
    return [_later(current, period, i).timestamp() for i in range(1 - steps, 2)]


def range_edges(start: int, end: int, period: str, zone: tzinfo) -> List[float]:
    """Begins of the periods from `start` to `end` (Unix seconds), and the end of the last."""
    first, edges = _begin_of(moment_of(start, zone), period), []
    for i in range(MAX_BUCKETS):
        edges.append(_later(first, period, i).timestamp())
        if edges[-1] > end:
            return edges
    raise invalid(f"start and end are more than {MAX_BUCKETS} {period} apart", "start")


def count_series(
    facts: Iterable[Tuple[str, float]], names: Sequence[str], edges: List[float]
) -> Json:
    """For each name how many facts (name and time) fall between each two edges."""
    series = {name: [0] * (len(edges) - 1) for name in names}
    for name, when in facts:
        index = bisect.bisect_right(edges, when) - 1
        if name in series and 0 <= index < len(edges) - 1:
            series[name][index] += 1
    return series


def link_series(
    workspace: Workspace, deliveries: Iterable[Delivery], edges: List[float], unique: bool
) -> Json:
    """Clicks by link; `unique` counts each person once for a link."""
    clicks: Dict[str, List[Tuple[str, float]]] = {}
    seen: Set[Tuple[str, Optional[str]]] = set()
    for delivery in deliveries:
        for row in delivery.history:
            href, who = row.get("href"), delivery.customer_id
            if not href or (unique and (href, who) in seen):
                continue
            seen.add((href, who))
            facts = [(name, row["timestamp"]) for name in (row["metric"], f"human_{row['metric']}")]
            clicks.setdefault(href, []).extend(facts)
    names = ("clicked", "human_clicked", "machine_clicked")
    return [
        {
            "link": {"id": workspace.deliveries.link_number(href), "href": href},
            "metric": {"series": count_series(facts, names, edges)},
        }
        for href, facts in clicks.items()
    ]


def family_row(call: Call, family: Family, text: str) -> Json:
    """The campaign, … in a path. Raises ApiError 404 once the kind has been seeded."""
    workspace, number = call.workspace, path_number(call.workspace, text)
    shelf = workspace.shelves[family.kind]
    if number in shelf.rows or not shelf.open:
        return shelved(call, family.kind, number)
    blank = blank_row(workspace, family.kind, f"{family.one.title()} {number}")
    return shelf.add(blank, number, is_write(call))


def content_row(
    call: Call, family: Family, parent: Json, content_id: str = "", language: Optional[str] = None
) -> Json:
    """A content (action) by number or language, or both. Raises ApiError 404."""
    shelf = call.workspace.shelves[family.shelf]
    number = path_number(call.workspace, content_id) if content_id else None
    for row in shelf.where(_parent=parent["id"]):
        fits = number is None or number in (row["id"], row.get("parent_action_id"))
        if fits and (row["id"] == number if language is None else row["language"] == language):
            return row
    if family is TRANSACTIONAL and number in shelf.rows:
        raise invalid("this content belongs to another message", "content_id")
    open_shelf = call.workspace.shelves[family.kind].open
    if open_shelf and not (number and number in shelf.rows):
        more = {} if number is None or language is not None else {"id": number}
        content = {**more, "language": language or ""}
        return add_content(call.workspace, family, parent["id"], content, is_write(call))
    raise not_found(call.workspace)


def change_content(call: Call, family: Family, row: Json) -> Json:
    """Update a content by the body; gives it as the App API does. Raises ApiError 400."""
    update = CONTENT_FIELDS.read(call.body())
    headers = update.get("headers")
    if headers is not None and not isinstance(headers, str):
        if isinstance(headers, dict):
            headers = [{"name": name, "value": value} for name, value in headers.items()]
        update["headers"] = as_text(headers)
    update["updated"] = call.workspace.seconds()
    row = call.workspace.shelves[family.shelf].change(row["id"], update)
    return content_document(family, row)


def sent_by(call: Call, family: Family, parent: Json, content_id: str = "") -> List[Delivery]:
    """What was sent by a campaign, …, or by one content of it; the query's `type` counts."""
    found = call.workspace.deliveries.sent.get((family.key, parent["id"]), [])
    if content_id:
        number = content_row(call, family, parent, content_id)["id"]
        found = [d for d in found if d.parents.get(family.content_key) == number]
    type = query_choice(call.request.query(), "type", MESSAGE_CHANNELS)
    return [d for d in found if not type or MESSAGE_TYPES.get(d.channel, d.channel) == type]


def query_edges(call: Call) -> Tuple[List[float], str]:
    """The periods that a metrics query asks for, and their kind. Raises ApiError 400."""
    query, now = call.request.query(), call.workspace.clock.now()
    if query_choice(query, "version", ("1", "2")) == "2":
        return query_range(call)
    period = query_choice(query, "period", tuple(PERIODS)) or "days"
    most = PERIODS[period]
    steps = query_number(query, "steps", 12 if period == "months" else most, 0, most)
    # 0 asks for the most; a series has two steps at least (reference).
    return period_edges(now, period, max(steps or most, 2)), period


def query_range(call: Call) -> Tuple[List[float], str]:
    """The periods between the query's `start` and `end`. Raises ApiError 400."""
    query = call.request.query()
    if not query.get("res") and query.get("resolution"):
        query["res"] = query["resolution"]
    for name in ("start", "end", "res"):
        if not query.get(name):
            raise required(name, "a query parameter")
    period = query_choice(query, "res", RESOLUTIONS)
    start, end = (query_number(query, name, 0, 0, 1 << 37) for name in ("start", "end"))
    if end < start:
        raise invalid("end must not be before start", "end")
    return range_edges(start, end, period, zone_named(query.get("tz") or "UTC")), period


def family_of(call: Call) -> Family:
    """The family that a path is about."""
    return FAMILIES[call.operation.path.split("/")[2]]


def metrics_answer(call: Call, id: str, content_id: str = "") -> Json:
    """Metrics of a campaign, … or of one content."""
    family = family_of(call)
    with call.workspace.lock:
        deliveries = sent_by(call, family, family_row(call, family, id), content_id)
        edges, period = query_edges(call)
        # The real API calls `dropped` suppressed here.
        renamed = {"dropped": "suppressed"}
        facts = ((renamed.get(m, m), t) for d in deliveries for m, t in d.metrics.items())
        series = count_series(facts, METRIC_SERIES, edges)
    begin, end = map(moment_of, (edges[0], edges[-1]))
    bounds = {"start": begin.isoformat(), "end": end.isoformat(), "res": period}
    return {"metric": {"series": series}, **(bounds if family is CAMPAIGNS else {})}


def links_answer(call: Call, id: str, content_id: str = "") -> Json:
    """Link metrics of a campaign, … or of one content."""
    family, unique = family_of(call), query_flag(call.request.query(), "unique")
    with call.workspace.lock:
        deliveries = sent_by(call, family, family_row(call, family, id), content_id)
        return {"links": link_series(call.workspace, deliveries, query_edges(call)[0], unique)}


@route("GET", "/v1/campaigns/{campaign_id}/journey_metrics", APP, heavy=True)
def journeys_answer(call: Call, campaign_id: str) -> Json:
    """Count the journeys of a campaign, by the period in which they began."""
    with call.workspace.lock:
        row = family_row(call, CAMPAIGNS, campaign_id)
        edges, _ = query_range(call)
        rows = [one for one in call.workspace.journeys.rows if one.campaign_id == row["id"]]
        sent = call.workspace.deliveries.sent.get(("campaign_id", row["id"]), [])
        facts = [fact for journey in rows for fact in journey_facts(journey)]
        facts += seeded_facts(delivery for delivery in sent if delivery.journey is None)
    return {"journey_metric": count_series(facts, JOURNEY_METRICS, edges)}


def family_messages(call: Call, id: str) -> Json:
    """Messages of a campaign, broadcast, newsletter or transactional message."""
    family, workspace = family_of(call), call.workspace
    with workspace.lock:
        row = family_row(call, family, id)
        sent, first = sent_by(call, family, row), None
        if family in _FROM_THE_FIRST:
            begins = [d.created for d in workspace.deliveries.sent.get((family.key, row["id"]), ())]
            if family is BROADCASTS:
                begins += [
                    t["received_at"] for t in workspace.broadcasts if t["campaign_id"] == row["id"]
                ]
            first = (min(begins, default=0), _FROM_THE_FIRST[family])
        return message_page(call, sent, MESSAGE_WINDOW * 2, first)


#: Whose messages are listed from the first one on, without a range, and for how many seconds:
#: 6 months, and 1 month (reference).
_FROM_THE_FIRST = {NEWSLETTERS: MESSAGE_WINDOW, BROADCASTS: 31 * 86400}


def list_family(call: Call) -> Json:
    """All campaigns, …; newsletters page by page."""
    family, workspace = family_of(call), call.workspace
    with workspace.lock:
        rows = workspace.shelves[family.kind].rows.values()
        documents = [family_document(workspace, family, row) for row in rows]
    if family is not NEWSLETTERS:
        return {family.many: documents}
    newest_first = query_choice(call.request.query(), "sort", ("asc", "desc")) == "desc"
    return paged(call, family.many, documents[::-1] if newest_first else documents)


def read_family(call: Call, id: str) -> Json:
    """One campaign, …."""
    family = family_of(call)
    with call.workspace.lock:
        row = family_row(call, family, id)
        return {family.one: family_document(call.workspace, family, row)}


def list_contents(call: Call, id: str) -> Json:
    """The contents (actions) of a campaign, …; those of campaigns ten a page (reference)."""
    family = family_of(call)
    with call.workspace.lock:
        row = family_row(call, family, id)
        rows = call.workspace.shelves[family.shelf].where(_parent=row["id"])
    documents = [content_document(family, row) for row in rows]
    whole = family is not CAMPAIGNS
    return (
        {family.contents: documents} if whole else paged(call, family.contents, documents, 10, 10)
    )


def one_content(call: Call, id: str, *rest: str) -> Json:
    """Read, or with PUT change, a content: by id, language, or both, as the path names them."""
    family, change = family_of(call), call.operation.method == "PUT"
    named = dict(zip(re.findall(r"{(\w+)}", call.operation.path)[1:], rest))
    listed = family is TRANSACTIONAL and (change or "language" in named)
    language = named.pop("language", None if named else "")
    with call.workspace.lock:
        parent = family_row(call, family, id)
        row = content_row(call, family, parent, "".join(named.values()), language)
        document = change_content(call, family, row) if change else content_document(family, row)
    return {family.content: [document] if listed else document}


def _serve_content(path: str, words: str) -> None:
    serve("GET", path, f"Read {words}.", one_content)
    serve("PUT", path, f"Change {words}.", one_content, fields=CONTENT_FIELDS)


def _serve_family(family: Family) -> None:
    """Routes that all four families have."""
    kind = family.kind
    words = "transactional messages" if family is TRANSACTIONAL else kind
    base = f"/v1/{kind}/{{{family.one}_id}}"
    contents = f"{base}/{family.contents}"
    serve("GET", f"/v1/{kind}", f"List the {words}.", list_family)
    serve("GET", base, f"Read one of the {words}.", read_family)
    serve("GET", f"{base}/metrics", f"Count what {words} sent.", metrics_answer, True)
    serve("GET", f"{base}/metrics/links", f"Count clicks by link of {words}.", links_answer, True)
    serve("GET", f"{base}/messages", f"List what {words} sent.", family_messages, True)
    serve("GET", contents, f"List the {family.contents} of {words}.", list_contents)
    if family is TRANSACTIONAL:
        serve("GET", f"{base}/deliveries", f"List what {words} sent.", family_messages)
        return
    inner, some = f"{contents}/{{{family.content}_id}}", f"one of the {family.contents}"
    _serve_content(inner, f"{some} of {words}")
    serve("GET", f"{inner}/metrics", f"Count what {some} sent.", metrics_answer, True)
    serve("GET", f"{inner}/metrics/links", f"Count clicks in {some}.", links_answer, True)
    if family is not NEWSLETTERS:
        _serve_content(f"{inner}/language/{{language}}", f"a translation of {kind}")


for _family in FAMILIES.values():
    _serve_family(_family)

_MESSAGE = "/v1/transactional/{transactional_id}"
_LETTER = "/v1/newsletters/{newsletter_id}"
_serve_content(f"{_MESSAGE}/language/{{language}}", "a translation of a transactional message")
_serve_content(f"{_LETTER}/language/{{language}}", "a translation of a newsletter")
serve("GET", f"{_MESSAGE}/contents/{{content_id}}", "Read a content of a message.", one_content)
# Seed 003 leaves the content's number out; the default one is meant.
serve("GET", f"{_MESSAGE}/content", "List the contents of a message.", list_contents)
for _path in (f"{_MESSAGE}/content", f"{_MESSAGE}/content/{{content_id}}"):
    _words = "Change a content of a message."
    serve("PUT", _path, _words, one_content, fields=CONTENT_FIELDS)


# ---- broadcast triggers


def trigger_of(call: Call, broadcast_id: str, trigger_id: str) -> Json:
    """The trigger in a path. Raises ApiError 404."""
    numbers = [path_number(call.workspace, text) for text in (broadcast_id, trigger_id)]
    for row in call.workspace.broadcasts:
        if [row["campaign_id"], row["id"]] == numbers:
            return cast(Json, row)
    raise not_found(call.workspace)


def trigger_document(row: Json) -> Json:
    """A trigger as the App API gives it; `processed_at` is null until all is sent."""
    times = {"created_at": row["received_at"], "processed_at": row["processed_at"]}
    return {"id": row["id"], "broadcast_id": row["campaign_id"], **times}


@route("GET", "/v1/broadcasts/{broadcast_id}/triggers", APP)
def list_triggers(call: Call, broadcast_id: str) -> Json:
    """List the triggers of a broadcast."""
    with call.workspace.lock:
        number = family_row(call, BROADCASTS, broadcast_id)["id"]
        rows = [row for row in call.workspace.broadcasts if row["campaign_id"] == number]
    return {"triggers": [trigger_document(row) for row in rows]}


@route("GET", "/v1/campaigns/{broadcast_id}/triggers/{trigger_id}", APP)
@route("GET", "/v1/broadcasts/{broadcast_id}/triggers/{trigger_id}", APP)
def get_trigger(call: Call, broadcast_id: str, trigger_id: str) -> Json:
    """Read how far a trigger is."""
    return trigger_document(trigger_of(call, broadcast_id, trigger_id))


@route("GET", "/v1/campaigns/{broadcast_id}/triggers/{trigger_id}/errors", APP)
@route("GET", "/v1/broadcasts/{broadcast_id}/triggers/{trigger_id}/errors", APP)
def list_trigger_errors(call: Call, broadcast_id: str, trigger_id: str) -> Json:
    """List what was wrong with a trigger, line by line."""
    return paged(call, "errors", trigger_of(call, broadcast_id, trigger_id)["errors"])


# ---- newsletters: create, schedule, send, variants


_NEWSLETTER = NO_FIELDS.having(
    "name type recipients", name=text_field(190), type=choice_field(*NEWSLETTER_TYPES),
    object="recipients", whole="subscription_topic_id scheduled_at", flag="send_now",
)  # fmt: skip
_NEWSLETTER_FIELDS = CONTENT_FIELDS.having("", **{**RATE_FIELDS.checks, **_NEWSLETTER.checks})


@route("POST", "/v1/newsletters", APP, True, _NEWSLETTER_FIELDS)
def create_newsletter(call: Call) -> Json:
    """Create a newsletter; send or schedule it, if the body says so."""
    body, workspace = call.body(), call.workspace
    given = {**_NEWSLETTER.read(body), **checked_rate(body)}
    needed = NEWSLETTER_TYPES[given["type"]]
    content = CONTENT_FIELDS._replace(needed=needed, status=422).read(body)
    if given["type"] == "push" and not (content.get("subject") or content.get("body")):
        raise ApiError(422, Problem("subject or body is required", "body"))
    _check_newsletter_recipients(given["recipients"], workspace.segments.is_member)
    if given.get("send_now") and given.get("scheduled_at"):
        raise ApiError(422, "send_now and scheduled_at exclude each other")
    _check_future(given.get("scheduled_at"), workspace)
    _check_sender(workspace, body)
    if workspace.shelves["topics"].rows and not given.get("subscription_topic_id"):
        raise ApiError(422, Problem("subscription_topic_id is required", "subscription_topic_id"))
    with workspace.lock:
        shelf = workspace.shelves["newsletters"]
        shelf.open = False
        recipients, now_or_later = given.pop("recipients"), given.pop("send_now", False)
        own = {"recipient_segment_ids": segments_of(recipients), "_recipients": recipients}
        row = shelf.add({**blank_row(workspace, "newsletters"), **given, **own})
        add_content(workspace, NEWSLETTERS, row["id"], {**content, "type": row["type"]})
        if given.get("scheduled_at"):
            send_later(workspace, row, given["scheduled_at"], call.base_url)
    if now_or_later:
        row = send_newsletter(workspace, row, call.base_url)
    return newsletter_answer(call, row)


def newsletter_answer(call: Call, row: Json) -> Json:
    """A newsletter as its operations answer."""
    return {"newsletter": family_document(call.workspace, NEWSLETTERS, row)}


def unsent_newsletter(call: Call, newsletter_id: str) -> Json:
    """The newsletter in a path. Raises ApiError 404, or 400 if it has been sent."""
    row = family_row(call, NEWSLETTERS, newsletter_id)
    if row.get("sent_at"):
        raise invalid("this newsletter has been sent")
    return row


@route("POST", "/v1/newsletters/{newsletter_id}/send", APP, True, RATE_FIELDS)
def send_newsletter_now(call: Call, newsletter_id: str) -> Json:
    """Send a newsletter."""
    with call.workspace.lock:
        row = unsent_newsletter(call, newsletter_id)
        rate = checked_rate(call.body())
        row = call.workspace.shelves["newsletters"].change(row["id"], rate)
    return newsletter_answer(call, send_newsletter(call.workspace, row, call.base_url))


_SCHEDULE = RATE_FIELDS.having(
    "scheduled_at", whole="scheduled_at", flag="tz_match_enabled", any="timezone"
)


@route("POST", "/v1/newsletters/{newsletter_id}/schedule", APP, fields=_SCHEDULE)
def schedule_newsletter(call: Call, newsletter_id: str) -> Json:
    """Schedule a newsletter, or take it off the schedule by 0."""
    body, workspace = call.body(), call.workspace
    with workspace.lock:
        row = unsent_newsletter(call, newsletter_id)
        given = {**call.fields(), **checked_rate(body)}
        when, zone = given["scheduled_at"], given.pop("timezone", None)
        _check_future(when, workspace)
        if given.get("tz_match_enabled") and given.get("rate_limit_time_period", 0) > 3600:
            text = "rate_limit_time_period must be an hour at most with tz_match_enabled"
            raise ApiError(422, Problem(text, "rate_limit_time_period"))
        if when:
            _check_zone(zone)
        elif not row.get("scheduled_at"):
            raise invalid("this newsletter is not scheduled", "scheduled_at")
        row = workspace.shelves["newsletters"].change(row["id"], {**given, "scheduled_at": when})
        if when:
            send_later(workspace, row, when, call.base_url)
        return newsletter_answer(call, row)


@route("DELETE", "/v1/newsletters/{newsletter_id}", APP)
def delete_newsletter(call: Call, newsletter_id: str) -> Response:
    """Delete a newsletter with its contents and metrics."""
    workspace = call.workspace
    with workspace.lock:
        number = family_row(call, NEWSLETTERS, newsletter_id)["id"]
        for kind in ("newsletter_contents", "test_groups"):
            for row in workspace.shelves[kind].where(_parent=number):
                del workspace.shelves[kind].rows[row["id"]]
        del workspace.shelves["newsletters"].rows[number]
        workspace.deliveries.sent.pop(("newsletter_id", number), None)
    return no_content()


def test_group_of(call: Call, newsletter: Json, group_id: str, status: int = 404) -> Json:
    """The test group in a path. Raises ApiError with `status`."""
    for row in call.workspace.shelves["test_groups"].where(_parent=newsletter["id"]):
        if as_text(row["id"]) == group_id:
            return row
    raise not_found(call.workspace) if status == 404 else invalid("unknown test group")


@route("GET", "/v1/newsletters/{newsletter_id}/test_groups", APP)
def list_test_groups(call: Call, newsletter_id: str) -> Json:
    """List the test groups of a newsletter."""
    with call.workspace.lock:
        row = family_row(call, NEWSLETTERS, newsletter_id)
        groups = call.workspace.shelves["test_groups"].where(_parent=row["id"])
    return {"test_groups": [shown(group) for group in groups]}


@route("POST", "/v1/newsletters/{newsletter_id}/test_groups", APP, fields=NO_FIELDS)
def create_test_group(call: Call, newsletter_id: str) -> Json:
    """Add a test group, whose content begins as a copy of the first one."""
    workspace = call.workspace
    with workspace.lock:
        row = unsent_newsletter(call, newsletter_id)
        if not workspace.shelves["test_groups"].where(_parent=row["id"]):
            contents = workspace.shelves["newsletter_contents"].where(_parent=row["id"])
            own = [content["id"] for content in contents]
            _add_test_group(workspace, row["id"], own)
        first = {k: v for k, v in content_row(call, NEWSLETTERS, row, "", "").items() if k != "id"}
        copy = add_content(workspace, NEWSLETTERS, row["id"], first)
        _add_test_group(workspace, row["id"], [copy["id"]])
        return newsletter_answer(call, row)


def variant_of(call: Call, newsletter_id: str, group_id: str, language: str) -> Json:
    """A newsletter's content in a language, in a test group if one is named."""
    row = family_row(call, NEWSLETTERS, newsletter_id)
    if not group_id:
        return content_row(call, NEWSLETTERS, row, "", language)
    group = test_group_of(call, row, group_id)
    for content in call.workspace.shelves["newsletter_contents"].where(_parent=row["id"]):
        if content["id"] in group["content_ids"] and content["language"] == language:
            return content
    raise not_found(call.workspace)


# Seed 003 writes the plural.
_IN_GROUP = f"{_LETTER}/test_group/{{test_group_id}}/language"
_IN_GROUPS = f"{_LETTER}/test_groups/{{test_group_id}}/language"


@route("GET", _IN_GROUP + "/{language}", APP)
@route("GET", _IN_GROUPS + "/{language}", APP)
@route("PUT", _IN_GROUP + "/{language}", APP, fields=CONTENT_FIELDS)
@route("PUT", _IN_GROUPS + "/{language}", APP, fields=CONTENT_FIELDS)
def one_variant(call: Call, newsletter_id: str, group_id: str, language: str) -> Json:
    """Read, or with PUT change, a translation in a test group."""
    with call.workspace.lock:
        content = variant_of(call, newsletter_id, group_id, language)
        if call.operation.method == "PUT":
            return {"content": change_content(call, NEWSLETTERS, content)}
        return {"content": content_document(NEWSLETTERS, content)}


@route("POST", f"{_LETTER}/language", APP, fields=TRANSLATION_FIELDS)
@route("POST", _IN_GROUP, APP, fields=TRANSLATION_FIELDS)
@route("POST", _IN_GROUPS, APP, fields=TRANSLATION_FIELDS)
def create_variant(call: Call, newsletter_id: str, group_id: str = "") -> Json:
    """Add a translation to a newsletter, or to one of its test groups."""
    workspace, body = call.workspace, call.body()
    with workspace.lock:
        row = unsent_newsletter(call, newsletter_id)
        if not group_id and workspace.shelves["test_groups"].where(_parent=row["id"]):
            raise invalid("this newsletter has several test groups: name one of them")
        group = test_group_of(call, row, group_id, 400) if group_id else None
        needed = [n for n in NEWSLETTER_TYPES[row["type"]] if n in ("subject", "body", "body_json")]
        given = TRANSLATION_FIELDS._replace(needed=["language", *needed]).read(body)
        mine = workspace.shelves["newsletter_contents"].where(_parent=row["id"])
        mine = [c for c in mine if group is None or c["id"] in group["content_ids"]]
        if given["language"] in [content["language"] for content in mine]:
            raise ApiError(422, Problem("this language exists already", "language"))
        more = {**given, "type": row["type"]}
        content = add_content(workspace, NEWSLETTERS, row["id"], more)
        if group is not None:
            ids = [*group["content_ids"], content["id"]]
            workspace.shelves["test_groups"].change(group["id"], {"content_ids": ids})
        return newsletter_answer(call, row)


@route("DELETE", f"{_LETTER}/language/{{language}}", APP)
@route("DELETE", _IN_GROUP + "/{language}", APP)
@route("DELETE", _IN_GROUPS + "/{language}", APP)
def delete_variant(call: Call, newsletter_id: str, *rest: str) -> Response:
    """Delete a translation of a newsletter, or of one of its test groups."""
    *group, language = rest
    with call.workspace.lock:
        row = unsent_newsletter(call, newsletter_id)
        for group_id in group:
            test_group_of(call, row, group_id, 400)
        content = variant_of(call, newsletter_id, "".join(group), language)
        del call.workspace.shelves["newsletter_contents"].rows[content["id"]]
    return no_content()


# ---- snippets, collections, senders, reporting webhooks

_SNIPPET = FieldList(status=422).having(
    "name value", filled="name", value=text_field(16_000, blank=True), any="updated_at"
)


@route("PUT", "/v1/snippets", APP, fields=_SNIPPET)
@route("POST", "/v1/snippets", APP, fields=_SNIPPET)
def save_snippet(call: Call) -> Json:
    """Create a snippet; with PUT also replace one."""
    given = call.fields()
    name = given["name"].strip()
    shelf = call.workspace.shelves["snippets"]
    if name in shelf.rows and call.operation.method == "POST":
        raise ApiError(422, Problem("name has already been taken", "name"))
    row = {"name": name, "value": given["value"].strip()}
    shelf.rows[name] = {**row, "updated_at": call.workspace.seconds()}
    return {"snippet": shelf.rows[name]}


@route("DELETE", "/v1/snippets/{snippet_name}", APP)
def delete_snippet(call: Call, snippet_name: str) -> Response:
    """Delete a snippet that no message uses."""
    row = shelved(call, "snippets", snippet_name)
    use = re.compile(r"snippets(\.%s\b|\[.%s.\])" % ((re.escape(row["name"]),) * 2))
    for family in FAMILIES.values():
        for content in call.workspace.shelves[family.shelf].rows.values():
            if use.search(as_text(content.get("body"))):
                raise ApiError(400, "unable to delete snippet in use")
    del call.workspace.shelves["snippets"].rows[snippet_name]
    return no_content()


MAX_COLLECTION = 10 * 1000 * 1000
MAX_COLLECTION_ROW = 10 * 1000


def checked_collection(data: Json, name: str = "data") -> Json:
    """The rows of a collection. Raises ApiError 400."""
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise invalid(f"{name} must be a list of objects", name)
    sizes = [len(compact(row)) for row in data]
    if sum(sizes) > MAX_COLLECTION or max(sizes, default=0) > MAX_COLLECTION_ROW:
        raise invalid(f"{name}: {MAX_COLLECTION} bytes, {MAX_COLLECTION_ROW} a row at most", name)
    return data


def collection_rows(body: Json) -> Json:
    """The rows that a body has, or those behind its `url`: CSV or a JSON list."""
    if "data" in body or not body.get("url"):
        return checked_collection(body.get("data"))
    text = fetched(body["url"], "url")
    if text.lstrip()[:1] in (b"[", b"{"):
        return checked_collection(decode_json(text), "url")
    return checked_collection(csv_rows(text, "url"), "url")


_COLLECTION = NO_FIELDS.having(
    "name", filled="name", data=ANYTHING._replace(type="a list of objects"), any="url"
)


@route("POST", "/v1/collections", APP, True, _COLLECTION)
def create_collection(call: Call) -> Json:
    """Create a collection from rows, or from a file behind a URL."""
    given, now = call.fields(), call.workspace.seconds()
    moment = {"created_at": now, "updated_at": now}
    row = {"name": given["name"], **moment, **content_of(collection_rows(given))}
    with call.workspace.lock:
        return {"collection": shown(call.workspace.shelves["collections"].add(row))}


def change_collection(call: Call, collection_id: str, update: Json) -> Json:
    """Replace fields of a collection."""
    with call.workspace.lock:
        number = path_number(call.workspace, collection_id)
        shelved(call, "collections", number)
        update = {**update, "updated_at": call.workspace.seconds()}
        row = call.workspace.shelves["collections"].change(number, update)
        return {"collection": shown(row)}


@route("PUT", "/v1/collections/{collection_id}", APP, True, _COLLECTION._replace(needed=()))
def update_collection(call: Call, collection_id: str) -> Json:
    """Rename a collection, or replace its content."""
    given = call.fields()
    update = {name: given[name] for name in ("name",) if name in given}
    if "data" in given or "url" in given:
        update.update(content_of(collection_rows(given)))
    return change_collection(call, collection_id, update)


_ROWS = FieldList(free="the row, or a list of rows, of a collection")


@route("PUT", "/v1/collections/{collection_id}/content", APP, fields=_ROWS)
def update_collection_content(call: Call, collection_id: str) -> Json:
    """Replace the content of a collection."""
    data = call.json()
    rows = checked_collection([data] if isinstance(data, dict) else data, "body")
    return change_collection(call, collection_id, content_of(rows))


@route("GET", "/v1/collections/{collection_id}/content", APP)
def get_collection_content(call: Call, collection_id: str) -> Response:
    """Read the content of a collection."""
    row = shelved(call, "collections", path_number(call.workspace, collection_id))
    return Response(200, compact(row["_content"]), APP.headers)


@route("GET", "/v1/sender_identities", APP)
def list_senders(call: Call) -> Json:
    """List the sender identities."""
    query = call.request.query()
    rows = [
        sender_document(row) for row in call.workspace.shelves["sender_identities"].rows.values()
    ]
    if query.get("hidden"):
        hidden = query_flag(query, "hidden")
        rows = [row for row in rows if row["hidden"] is hidden]
    if query_choice(query, "sort", ("asc", "desc")) == "desc":
        rows.reverse()
    return paged(call, "sender_identities", rows)


def sender_document(row: Json) -> Json:
    """A sender identity with all its fields."""
    blank = {"name": "", "email": "", "phone": "", "address": "", "template_type": "email"}
    more = {"auto_generated": False, "hidden": False, "deduplicate_id": f"{row['id']}:0"}
    return {**blank, **more, **shown(row)}


@route("GET", "/v1/sender_identities/{sender_id}/used_by", APP)
def sender_used_by(call: Call, sender_id: str) -> Json:
    """List what a sender identity is used by."""
    workspace = call.workspace
    with workspace.lock:
        number = shelved(call, "sender_identities", path_number(workspace, sender_id))["id"]
        parents = {
            (family.kind, content["_parent"])
            for family in (CAMPAIGNS, NEWSLETTERS)
            for content in workspace.shelves[family.shelf].rows.values()
            if number in (content.get("from_id"), content.get("sender_identity_id"))
        }
        kinds = {True: "newsletters", False: "campaigns"}
        return users_of(workspace, lambda row: (kinds["sent_at" in row], row["id"]) in parents)


_WEBHOOK = NO_FIELDS.having(
    "name endpoint events", filled="name", endpoint=URL,
    events=list_field(choice_field(*WEBHOOK_EVENTS), 1, of="event"),
    flag="disabled full_resolution with_content",
)  # fmt: skip
_WEBHOOK_WITH_ID = _WEBHOOK.having(any="id")


@route("POST", "/v1/reporting_webhooks", APP, fields=_WEBHOOK_WITH_ID)
def create_webhook(call: Call) -> Json:
    """Register an endpoint for reporting webhooks."""
    given = _WEBHOOK.read(call.body())
    off = {"disabled": False, "full_resolution": False, "with_content": False, "type": "webhook"}
    with call.workspace.lock:
        return call.workspace.shelves["reporting_webhooks"].add({**off, **given})


@route("PUT", "/v1/reporting_webhooks/{webhook_id}", APP, fields=_WEBHOOK_WITH_ID)
def update_webhook(call: Call, webhook_id: str) -> Json:
    """Change a reporting webhook."""
    with call.workspace.lock:
        number = path_number(call.workspace, webhook_id)
        shelved(call, "reporting_webhooks", number)
        given = _WEBHOOK._replace(needed=()).read(call.body())
        return call.workspace.shelves["reporting_webhooks"].change(number, given)


def topic_document(row: Json) -> Json:
    """A subscription topic with all its fields."""
    blank = {"name": "", "description": "", "subscribed_by_default": True}
    return {**blank, "identifier": f"topic_{row['id']}", **shown(row)}


#: The subscription channels that every workspace has.
DEFAULT_CHANNELS = ("email", "twilio", "push", "in_app", "whatsapp")


def channel_document(row: Json) -> Json:
    """A subscription channel with all its fields."""
    blank = {"name": "", "description": "", "type": "email", "subscribed_by_default": True}
    return {**blank, **shown(row)}


class Listed(NamedTuple):
    """A kind of rows that are just listed, read and deleted."""

    shelf: str
    #: What an answer calls many and one of them; "-" where it is the answer itself.
    many: str
    one: str = ""
    document: Callable[[Json], Json] = shown
    can_delete: bool = False


#: The kinds by their path.
LISTED = {
    "snippets": Listed("snippets", "snippets"),
    "collections": Listed("collections", "collections", "collection", shown, True),
    "sender_identities": Listed("sender_identities", "", "sender_identity", sender_document),
    "reporting_webhooks": Listed("reporting_webhooks", "reporting_webhooks", "-", shown, True),
    "subscription_topics": Listed("topics", "topics", "", topic_document),
    "subscription_channels": Listed("channels", "channels", "", channel_document),
}


def _listed(call: Call) -> Listed:
    return LISTED[call.operation.path.split("/")[2]]


def list_rows(call: Call) -> Json:
    """All rows of a kind."""
    kind = _listed(call)
    with call.workspace.lock:
        found = list(call.workspace.shelves[kind.shelf].rows.values())
        if kind.shelf == "channels" and not found:
            found = [{"id": n, "name": t, "type": t} for n, t in enumerate(DEFAULT_CHANNELS, 1)]
        documents = [kind.document(row) for row in found]
    # Like exports, these two are null when there are none (observed).
    return {kind.many: documents or (None if kind.can_delete else [])}


def read_row(call: Call, id: str) -> Json:
    """One row of a kind."""
    kind = _listed(call)
    document = kind.document(shelved(call, kind.shelf, path_number(call.workspace, id)))
    return document if kind.one == "-" else {kind.one: document}


def delete_row(call: Call, id: str) -> Response:
    """Delete one row of a kind."""
    shelf = _listed(call).shelf
    with call.workspace.lock:
        row = shelved(call, shelf, path_number(call.workspace, id))
        del call.workspace.shelves[shelf].rows[row["id"]]
    return no_content()


for _path, _one_kind in LISTED.items():
    _words = _path.replace("_", " ")
    if _one_kind.many:
        serve("GET", f"/v1/{_path}", f"List the {_words}.", list_rows)
    if _one_kind.one:
        serve("GET", f"/v1/{_path}/{{id}}", f"Read one of the {_words}.", read_row)
    if _one_kind.can_delete:
        serve("DELETE", f"/v1/{_path}/{{id}}", f"Delete one of the {_words}.", delete_row)


# ---- subscriptions


def topics_of(call: Call, person: Person) -> List[Json]:
    """The topics of the workspace and whether a person is subscribed to each."""
    language = call.request.query().get("language", "")
    rows = []
    for row in call.workspace.shelves["topics"].rows.values():
        topic = {**topic_document(row), **(row.get("translations") or {}).get(language, {})}
        on = subscribed_to(call.workspace, person, row)
        texts = {name: topic[name] for name in ("name", "description")}
        rows.append({"id": as_text(topic["id"]), "subscribed": on, **texts})
    return rows


@route("GET", "/v1/customers/{customer_id}/subscription_preferences", APP)
def get_subscription_preferences(call: Call, customer_id: str) -> Json:
    """Read what a person is subscribed to."""
    with call.workspace.lock:
        person = person_of(call, customer_id)
        return {"customer": preferences_document(call, person)}


def preferences_document(call: Call, person: Person) -> Json:
    """A person with topics, as the subscription center shows them."""
    named = {"id": person.id or None, "identifiers": person.identifiers()}
    header = {"title": "Subscription preferences", "subtitle": person.email}
    topics = topics_of(call, person)
    return {**named, "topics": topics, "unsubscribed": person.unsubscribed(), "header": header}


@route("GET", "/v1/subscription_center/{customer_id}/token", APP)
def get_subscription_token(call: Call, customer_id: str) -> Json:
    """Get a signed link to a person's subscription center."""
    workspace = call.workspace
    people = workspace.people
    with workspace.lock:
        person = people.find(("id", customer_id)) or people.find(("email", customer_id))
    if person is None:
        raise ApiError(400, "bad request")
    token = subscription_token(workspace, person)
    return {"token": token, "url": f"{call.base_url}/u/i/{token}/"}


@route("GET", "/u/i/{token}/", APP_OPEN)
def show_subscription_center(call: Call, token: str) -> Json:
    """Show what the person of a token is subscribed to."""
    serial, _, rest = token.partition(".")
    expires, _, signature = rest.partition(".")
    if not (serial.isdecimal() and expires.isdecimal() and len(token) < 200):
        raise ApiError(400, "this is not a token of the subscription center")
    wanted = link_signature(call.workspace, int(serial), int(expires))
    if not hmac.compare_digest(wanted.encode(), signature.encode()):
        raise ApiError(400, "this is not a token of the subscription center")
    person = call.workspace.people.at(int(serial))
    if person is None or call.workspace.seconds() >= int(expires):
        raise ApiError(400, "this token has expired")
    with call.workspace.lock:
        return {"customer": preferences_document(call, person)}


def optouts_of(workspace: Workspace, person: Person) -> List[Json]:
    """The senders that a person does not want to hear from."""
    pairs = workspace.optouts.get(person.serial, ())
    return [{"channel": channel, "from": sender} for channel, sender in pairs]


@route("GET", "/v1/customers/{customer_id}/optouts", APP)
def get_person_optouts(call: Call, customer_id: str) -> Json:
    """List a person's opt-outs from SMS and WhatsApp senders."""
    with call.workspace.lock:
        return {"optouts": optouts_of(call.workspace, person_of(call, customer_id))}


_OPTOUT = NO_FIELDS.having(
    "from optout", filled="from", flag="optout", channel=choice_field("sms", "whatsapp")
)
_OPTOUTS = NO_FIELDS.having("optouts", optouts=list_field(object_field(_OPTOUT), 1, of="opt-out"))


@route("PUT", "/v1/customers/{customer_id}/optouts", APP, fields=_OPTOUTS)
def update_person_optouts(call: Call, customer_id: str) -> Response:
    """Opt a person out of SMS and WhatsApp senders, or in again."""
    given = call.fields()["optouts"]
    with call.workspace.lock:
        person = person_of(call, customer_id)
        pairs = dict.fromkeys(call.workspace.optouts.get(person.serial, ()))
        for row in given:
            pair = (row.get("channel", "sms"), row["from"])
            if row["optout"]:
                pairs[pair] = None
            else:
                pairs.pop(pair, None)
        call.workspace.optouts[person.serial] = tuple(pairs)
    return no_content()


@route("GET", "/v1/optouts", APP)
def list_optouts(call: Call) -> Json:
    """List everybody's opt-outs."""
    workspace, sender = call.workspace, call.request.query().get("from")
    rows = []
    with workspace.lock:
        for serial in workspace.optouts:
            person = workspace.people.at(serial)
            mine = optouts_of(workspace, person) if person else []
            mine = [row for row in mine if not sender or row["from"] == sender]
            if person and mine:
                named = {"customer_id": person.id, "cio_id": person.cio_id}
                rows.append({**named, "optouts": mine})
    return paged(call, "optouts", rows)


# ---- ESP suppression

ESP_TYPES = ("bounces", "spam_reports", "blocks", "invalid_emails")


def _esp_category(type: str) -> str:
    return "spam" if type == "spam_reports" else "bounces"


def esp_type(call: Call, text: str) -> str:
    """The kind of suppression in a path. Raises ApiError 404."""
    if text not in ESP_TYPES:
        raise not_found(call.workspace)
    return text


def esp_page(call: Call, type: str, rows: List[Json]) -> Json:
    """One page of suppressions by `limit`, `start` or the older `offset`, and `email`."""
    query = call.request.query()
    email = query.get("email", "").lower()
    rows = [row for row in rows if not email or row["email"].lower() == email]
    rows = rows[query_number(query, "offset", 0, 0, 1 << 40) :]
    return {"category": _esp_category(type), **paged(call, "suppressions", rows)}


@route("GET", "/v1/esp/suppression/{suppression_type}", APP)
def list_suppressions(call: Call, suppression_type: str) -> Json:
    """List the addresses that the email provider suppresses."""
    type = esp_type(call, suppression_type)
    return esp_page(call, type, list(call.workspace.deliveries.esp.get(type, {}).values()))


@route("GET", "/v1/esp/domains/{domain_name}/suppression/{suppression_type}", APP)
def list_domain_suppressions(call: Call, domain_name: str, suppression_type: str) -> Json:
    """List the suppressed addresses of a sending domain; an unknown domain has none."""
    workspace, type = call.workspace, esp_type(call, suppression_type)
    ours = domains_of(workspace)
    known = not ours or domain_name.lower() in ours
    return esp_page(
        call, type, list(workspace.deliveries.esp.get(type, {}).values()) if known else []
    )


@route("GET", "/v1/esp/search_suppression/{email_address}", APP)
@route("GET", "/v1/esp_suppression/{email_address}", APP)
def find_suppression(call: Call, email_address: str) -> Json:
    """Look an address up in the lists of the email provider."""
    for type, rows in call.workspace.deliveries.esp.items():
        if email_address.lower() in rows:
            row = rows[email_address.lower()]
            return {"category": _esp_category(type), "suppressions": [row]}
    return {"category": "", "suppressions": []}


def suppress_address(call: Call, type: str, email: str) -> Json:
    """Put an address on a list of the email provider."""
    if not _EMAIL_SHAPE.fullmatch(email):
        raise invalid("email_address must be an email address", "email_address")
    reason = "Uploaded manually via api.customer.io"  # description
    with call.workspace.lock:
        now = call.workspace.seconds()
        call.workspace.deliveries.suppress_address(type, email, reason, now)
    return {}


@route("POST", "/v1/esp/suppression/{suppression_type}/{email_address}", APP, fields=NO_FIELDS)
def suppress_email(call: Call, suppression_type: str, email_address: str) -> Json:
    """Suppress an address at the email provider."""
    return suppress_address(call, esp_type(call, suppression_type), email_address)


@route("DELETE", "/v1/esp/suppression/{suppression_type}/{email_address}", APP)
def unsuppress_email(call: Call, suppression_type: str, email_address: str) -> Response:
    """Take an address off a list of the email provider."""
    rows = call.workspace.deliveries.esp.get(esp_type(call, suppression_type), {})
    if rows.pop(email_address.lower(), None) is None:
        raise not_found(call.workspace)
    return no_content()


@route("PUT", "/v1/esp_suppression/{email_address}", APP, fields=NO_FIELDS)
def suppress_email_seed(call: Call, email_address: str) -> Json:
    """Suppress an address."""
    return suppress_address(call, "bounces", email_address)


@route("DELETE", "/v1/esp_suppression/{email_address}", APP)
def unsuppress_email_seed(call: Call, email_address: str) -> Response:
    """Take an address off all lists."""
    gone = [
        rows.pop(email_address.lower(), None) for rows in call.workspace.deliveries.esp.values()
    ]
    if not any(gone):
        raise not_found(call.workspace)
    return no_content()


_ADDRESSES = LAX.having(rows="emails", any="email")


@route("POST", "/v1/esp_suppression/search", APP, fields=_ADDRESSES)
def search_suppressions(call: Call) -> Json:
    """Search all lists of the email provider by addresses."""
    body = call.fields()
    emails = body.get("emails") or [body.get("email")]
    wanted = [as_text(email).lower() for email in emails if email]
    lists = call.workspace.deliveries.esp.values()
    rows = [row for rows in lists for key, row in rows.items() if not wanted or key in wanted]
    return paged(call, "suppressions", rows)


# ---- imports


_IMPORT_BODY = LAX.having("import", **{"import": OBJECT._replace(inner=import_fields)})


@route("POST", "/v1/imports", APP, True, _IMPORT_BODY)
def create_import(call: Call) -> Json:
    """Import people, events, objects or relationships from a CSV behind a URL."""
    order, workspace = checked_import(call.fields()["import"]), call.workspace
    try:
        rows, failed = (
            csv_rows(fetched(order["data_file_url"], "data_file_url"), "data_file_url"),
            "",
        )
    except ApiError as error:
        rows, failed = [], error.message
    with workspace.lock:
        failed = failed or _unknown_object_type(workspace, order)
        if failed:
            outcome = {"state": "failed", "error": failed, "rows_to_import": 0, "rows_imported": 0}
        else:
            outcome = run_import(workspace, order, rows, call.base_url)
        times = dict.fromkeys(("created_at", "updated_at"), workspace.seconds())
        row = workspace.shelves["imports"].add({**_import_facts(order), **times, **outcome})
    # The answer comes before the work, which is done when anybody asks again.
    accepted = {"state": "preprocessing", "rows_to_import": 0, "rows_imported": 0}
    hidden = ("error", "error_export_id", "error_download_url")
    shown_row = {name: value for name, value in row.items() if name not in hidden}
    return {"import": {**shown_row, **accepted}}


@route("GET", "/v1/imports/{import_id}", APP)
def get_import(call: Call, import_id: str) -> Json:
    """Read how far an import is."""
    row = shelved(call, "imports", path_number(call.workspace, import_id))
    return {"import": shown(row)}


# ---- data index, workspaces, addresses

MAX_INDEX_CHANGES = 100
_INDEX_ROW = NO_FIELDS.having(
    "name", filled="name", text="description", privacy_level=choice_field(0, 1)
)


_INDEX_ROWS = list_field(object_field(_INDEX_ROW))


@route("POST", "/v1/data_index/attributes", APP, fields=NO_FIELDS.having(attributes=_INDEX_ROWS))
@route("POST", "/v1/data_index/events", APP, fields=NO_FIELDS.having(events=_INDEX_ROWS))
def change_index(call: Call) -> Response:
    """Describe attributes or events."""
    kind = call.operation.path.split("/")[3]
    rows = call.body().get(kind)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ApiError(400, "Invalid request format")
    if not rows or len(rows) > MAX_INDEX_CHANGES:
        text = f"Empty {kind} array" if not rows else f"Too many {kind}"
        raise ApiError(422, Problem(text, kind))
    given = [_INDEX_ROW.read(row, f"{kind}[{i}].") for i, row in enumerate(rows)]
    with call.workspace.lock:
        known = call.workspace.index.setdefault(kind, {})
        for row in given:
            known[row["name"]] = {**known.get(row["name"], {}), **row}
    return no_content()


# Seed 003's paths and method.
@route("GET", "/v1/index/attributes", APP, heavy=True)
@route("GET", "/v1/index/events", APP, heavy=True)
def list_index(call: Call) -> Json:
    """List the attributes or events that have been seen, with what is known about them."""
    workspace, kind = call.workspace, call.operation.path.split("/")[3]
    with workspace.lock:
        people = workspace.people
        seen = {name for person in people for name in person.attributes}
        if kind == "events":
            seen = {event.name for event in workspace.events.rows}
        known = workspace.index.get(kind, {})
        rows = [{"name": name, **known.get(name, {})} for name in sorted(seen | set(known))]
    return {kind: rows}


@route("GET", "/v1/workspaces", APP)
def list_workspaces(call: Call) -> Json:
    """List the workspaces with what is in them."""
    workspace = call.workspace
    with workspace.lock:
        sent = sum("sent" in delivery.metrics for delivery in workspace.deliveries.rows.values())
        counts = {
            "messages_sent": sent,
            "billable_messages_sent": sent,
            "people": len(workspace.people),
            "object_types": len(list_object_types(call)["types"]),
            "objects": len(workspace.objects.rows),
        }
        seeded = list(workspace.shelves["workspaces"].rows.values())
    own = {"id": WORKSPACE_NUMBER, "name": "customerio_fake", **counts}
    others = dict.fromkeys(counts, 0)
    first = {**own, **(seeded[0] if seeded else {})}
    return {"workspaces": [first, *({**others, **row} for row in seeded[1:])]}


@route("GET", "/v1/info/ip_addresses", APP_OPEN)
def list_ip_addresses(call: Call) -> Json:
    """List the addresses that webhooks come from: here, that of the fake itself."""
    return {"ip_addresses": call.workspace.ip_addresses or [call.fake.settings.host]}


# ======================================================================================
# ==== §21 Design Studio, assets and live notifications
# ======================================================================================
#
# Rules without another source are from the 2026 reference. What it leaves open is inferred: what is
# unique (names of assets in a folder, tags of components), that a folder of assets is deleted with
# all in it, the names, weights and words of a review's checks, and what a capture looks like.


class StudioError(ApiError):
    """An error of Design Studio with details: a failed publish tells what is wrong by language."""

    def __init__(self, status: int, message: str, meta: Json) -> None:
        super().__init__(status, message)
        self.meta = meta


def studio_errors(error: ApiError) -> Json:
    """The App API's list of errors, with `meta` where there are details (reference)."""
    answer = detail_list(error)
    if isinstance(error, StudioError):
        answer["errors"][0]["meta"] = error.meta
    return answer


STUDIO = APP._replace(envelope=studio_errors)


def resource_missing(what: str = "", field: str = "") -> ApiError:
    """Design Studio's 404."""
    return ApiError(404, Problem(joined("resource not found", what), field))


def constraint_error(why: str) -> ApiError:
    """Design Studio's 409."""
    return ApiError(409, joined("a constraint violation prevents this operation", why))


# ---- fields


_UUID_SHAPE = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID = pattern_field(_UUID_SHAPE, "a UUID or null")


def _wrong_folder_name(value: Json) -> str:
    wrong = SHORT_TEXT.wrong(value)
    bad = "" if wrong else "".join(sorted(set('<>:"/\\|?*.') & set(value)))
    return f"can't contain {' '.join(bad)}" if bad else wrong


_FOLDER_NAME = Check("a string", _wrong_folder_name)
_PARENT_UUID = must_be("a UUID or null", lambda value: value is None or not _UUID.wrong(value))
_PARENT_NUMBER = must_be(
    "the number of a folder, or null",
    lambda value: value is None or (type(value) is int and value >= 0),
)


def _part_field(flags: str = "", **others: Union[str, Check]) -> Check:
    return object_field(CLOSED.having(flag=flags, **others))


#: The parts of an email (reference).
CONTENT = ("subject", "preheader_text", "html", "text", "amp")
_PARTS = {
    "content": _part_field(text=" ".join(CONTENT)),
    "envelope": _part_field(
        "fake_bcc", maybe="from_id reply_to_id", text="recipient bcc cc",
        headers=list_field(_part_field(text="name value")),
    ),
    "transformers": _part_field(
        accessibility=_part_field(
            "enabled add_dir_to_content add_dir_to_html add_empty_alt_to_images "
            "add_lang_to_content add_lang_to_html add_role_to_tables add_title_to_head "
            "add_vml_alt_text remove_button_role_from_links remove_zoom_meta_tag", text="language",
        ),
        css_inliner=_part_field(
            "enabled apply_style_tags remove_style_tags inline_pseudo_elements "
            "preserve_font_faces preserve_important preserve_keyframes preserve_media_queries "
            "preserve_pseudos",
            apply_html_attributes=_part_field(
                "enabled apply_height_attributes apply_width_attributes "
                "apply_table_element_attributes"
            ),
        ),
        css_variables=_part_field("enabled preserve"), encode_entities=_part_field("enabled"),
        prevent_widows=_part_field("enabled"),
        formatter=_part_field(
            type=choice_field("none", "prettify", "minify"),
            minify=_part_field(
                "remove_css_comments remove_indentations remove_line_breaks",
                whole="line_length_limit", remove_html_comments=choice_field("0", "1", "2"),
            ),
            prettify=_part_field(
                "wrap_attributes", indent_character=choice_field("spaces", "tabs"),
                whole="indent_size",
            ),
        ),
        remove_unused_css=_part_field(
            "enabled uglify", whitelist=list_field(ANY_TEXT),
            backend_markers=list_field(_part_field(text="heads tails")),
        ),
        url_parameters=_part_field(
            "enabled", parameters=list_field(_part_field("url_encode", text="key value"))
        ),
    ),
}  # fmt: skip
_BLANK_PARTS: Json = {
    "content": dict.fromkeys(CONTENT, ""),
    "envelope": {
        "from_id": None, "reply_to_id": None, "recipient": "{{customer.email}}", "bcc": "",
        "fake_bcc": True, "headers": [],
    },
    "transformers": {},
}  # fmt: skip


# ---- query parameters

QueryReader = Callable[[Dict[str, str], str], Any]


def _query_between(least: int, most: int, default: Optional[int] = None) -> QueryReader:
    def read(query: Dict[str, str], name: str) -> Optional[int]:
        number = whole_number(query.get(name) or None, name)
        if number is not None and not least <= number <= most:
            raise invalid(f"{name} must be between {least} and {most}", name)
        return default if number is None else number

    return read


def _query_one_of(choices: Any, default: Any = None) -> QueryReader:
    return functools.partial(query_choice, choices=choices, default=default)


def read_query(call: Call, readers: Mapping[str, QueryReader]) -> Json:
    """The query parameters that `readers` know. Raises ApiError 400."""
    query = call.request.query()
    try:
        return {name: read(query, name) for name, read in readers.items()}
    except ApiError as error:
        name = error.problems[0].field
        raise invalid(f"invalid query parameter: {error.message}", name) from None


_UNIX_TIME = _query_between(0, 1 << 53)
_PAGE_QUERY = {"page": _query_between(1, 1 << 53, 1), "limit": _query_between(1, 10_000, 1000)}


def _query_word(query: Dict[str, str], name: str) -> Optional[str]:
    return query.get(name) or None


_ASSET_QUERY: Dict[str, QueryReader] = {
    "parent_folder_id": lambda query, name: _UNIX_TIME(query, name) or None,
    "direct_descendants_only": query_flag,
}
_STUDIO_QUERY: Dict[str, QueryReader] = {
    **dict.fromkeys(
        ("created_after", "created_before", "updated_after", "updated_before"), _UNIX_TIME
    ),
    "direct_descendants_only": query_flag,
    "parent_folder_id": _query_word,
    "sort_by": _query_one_of(("created", "updated", "name"), "created"),
    "sort_order": _query_one_of(("asc", "desc"), "asc"),
}
_YES_NO_ANY = _query_one_of({"true": True, "false": False, "any": None})
_EMAIL_QUERY = {
    **_STUDIO_QUERY, **dict.fromkeys(("is_template", "has_translations", "is_linked"), _YES_NO_ANY)
}  # fmt: skip


def _changes(fields: FieldList) -> FieldList:
    """The same fields where at least one of them is to be changed."""
    return fields._replace(needed=(), some=True)


# ---- what lies in folders: folders, assets, components, emails


class StudioKind(NamedTuple):
    """A kind of thing that lies in folders; its five operations follow from this row."""

    noun: str
    path: str
    listed: str
    #: What an answer calls one and many of them.
    one: str
    many: str
    #: Where they and their folders are kept.
    shelf: str
    folders: str
    fields: FieldList
    blank: Json
    #: Fields that no two may have alike.
    unique: Sequence[str] = ()
    query: Mapping[str, QueryReader] = _STUDIO_QUERY
    show: Callable[[Call, Json], Json] = lambda call, row: shown(row)
    brief: Callable[[Call, Json], Json] = lambda call, row: shown(row)
    #: Prepares for a deletion, or raises ApiError 409.
    clear: Callable[[Workspace, Json], None] = lambda workspace, row: None


def _studio_row(kind: StudioKind, call: Call, id: str) -> Json:
    """The row with the id in a path. Raises ApiError 404, or 400 for what can't be an asset's."""
    numbered = kind.folders == "asset_folders"
    if numbered and not re.fullmatch(r"[1-9]\d{0,14}", id):
        raise invalid("id must be a whole number of at least 1", "id")
    row = call.workspace.shelves[kind.shelf].rows.get(int(id) if numbered else id.lower())
    if row is None:
        raise resource_missing()
    return row


def line_of(workspace: Workspace, folders: str, id: Any) -> List[Any]:
    """The ids of a folder and of all above it. Raises ApiError 404."""
    rows, line = workspace.shelves[folders].rows, []
    while id is not None:
        if id not in rows:
            raise resource_missing("no folder has this parent_folder_id", "parent_folder_id")
        line.append(id)
        id = rows[id]["parent_folder_id"]
    return line


def _settled_row(kind: StudioKind, workspace: Workspace, row: Json) -> Json:
    """A row fit to be stored. Raises ApiError 404 or 400 for its folder, 409 for its name."""
    folder = row["parent_folder_id"] or None
    row = {**row, "parent_folder_id": folder.lower() if isinstance(folder, str) else folder}
    line = line_of(workspace, kind.folders, row["parent_folder_id"])
    if kind.shelf == kind.folders and row.get("id") in line:
        raise invalid("parent_folder_id is the folder itself or in it", "parent_folder_id")
    alike = workspace.shelves[kind.shelf].where(**{name: row[name] for name in kind.unique})
    if kind.unique and any(other["id"] != row.get("id") for other in alike):
        raise constraint_error(f"{kind.unique[0]} is taken by another {kind.noun}")
    _check_senders(workspace, row)
    return row


def _check_senders(workspace: Workspace, row: Json) -> None:
    senders = workspace.shelves["sender_identities"]
    for name in ("from_id", "reply_to_id"):
        number = row.get("envelope", {}).get(name)
        if number is not None and number not in senders.rows and not senders.open:
            raise invalid(f"envelope.{name}: no sender identity has this id", f"envelope.{name}")


def put_up(kind: StudioKind, call: Call, fields: Json) -> Json:
    """Store a new row and answer with it."""
    workspace = call.workspace
    with workspace.lock:
        moment = dict.fromkeys(("created", "updated"), workspace.seconds())
        row = _settled_row(kind, workspace, {**merged(kind.blank, fields), **moment})
        id = None if kind.folders == "asset_folders" else uuid_of(workspace.count("uuid"))
        row = workspace.shelves[kind.shelf].add(row, id)
        return {kind.one: kind.show(call, row)}


def read_item(kind: StudioKind, call: Call, id: str) -> Json:
    """Answer with one row."""
    with call.workspace.lock:
        return {kind.one: kind.show(call, _studio_row(kind, call, id))}


def update_item(kind: StudioKind, call: Call, id: str) -> Response:
    """Change the fields that the body names."""
    fields, workspace = call.fields(), call.workspace
    with workspace.lock:
        old = _studio_row(kind, call, id)
        row = _settled_row(kind, workspace, {**merged(old, fields), "updated": workspace.seconds()})
        workspace.shelves[kind.shelf].change(row["id"], row)
    return no_content()


def delete_item(kind: StudioKind, call: Call, id: str) -> Response:
    """Delete a row, if its kind allows it."""
    with call.workspace.lock:
        row = _studio_row(kind, call, id)
        kind.clear(call.workspace, row)
        del call.workspace.shelves[kind.shelf].rows[row["id"]]
    return no_content()


def list_items(kind: StudioKind, call: Call) -> Json:
    """Answer with a page of the rows that fit the query."""
    filters = read_query(call, kind.query)
    pages, folders = read_query(call, _PAGE_QUERY), {}
    with call.workspace.lock:
        rows = [kind.brief(call, row) for row in _lying_in(call, kind.folders, kind.shelf, filters)]
        if kind.folders == "ds_folders" != kind.shelf:
            found = _lying_in(call, kind.folders, kind.folders, filters)
            folders = {"folders": [shown(row) for row in found]}
    rows = [row for row in rows if _row_fits(row, filters)]
    rows.sort(
        key=lambda row: row[filters.get("sort_by") or "created"],
        reverse=filters.get("sort_order") == "desc",
    )
    start = (pages["page"] - 1) * pages["limit"]
    meta = {"filters": filters, "pagination": {**pages, "total": len(rows)}}
    return {kind.many: rows[start : start + pages["limit"]], **folders, "meta": meta}


def _lying_in(call: Call, folders: str, shelf: str, filters: Json) -> List[Json]:
    """The rows in a folder, or with `direct_descendants_only` right in it. Raises ApiError 404."""
    workspace, top = call.workspace, filters["parent_folder_id"]
    line_of(workspace, folders, top)
    rows = workspace.shelves[shelf].rows.values()
    if filters["direct_descendants_only"]:
        return [row for row in rows if row["parent_folder_id"] == top]
    if top is None:
        return list(rows)
    return [row for row in rows if top in line_of(workspace, folders, row["parent_folder_id"])]


def _row_fits(row: Json, filters: Json) -> bool:
    given = {name: wanted for name, wanted in filters.items() if wanted is not None}
    same = given.keys() & {"tag", "is_template", "has_translations", "is_linked"}
    return (
        all(row[name] == given[name] for name in same)
        and all(row[n] > given.get(f"{n}_after", -1) for n in ("created", "updated"))
        and all(row[n] < given.get(f"{n}_before", math.inf) for n in ("created", "updated"))
    )


def _keep_full_folder(workspace: Workspace, folder: Json) -> None:
    shelves = (workspace.shelves[name] for name in ("ds_folders", "ds_components", "ds_emails"))
    if any(shelf.where(parent_folder_id=folder["id"]) for shelf in shelves):
        raise constraint_error("the folder is not empty")


def _empty_folder(workspace: Workspace, folder: Json) -> None:
    """Delete what is in a folder of assets; no error is documented for a full one (inferred)."""
    for name in ("assets", "asset_folders"):
        shelf = workspace.shelves[name]
        for row in shelf.where(parent_folder_id=folder["id"]):
            if name == "asset_folders":
                _empty_folder(workspace, row)
            del shelf.rows[row["id"]]


def _asset_document(call: Call, row: Json) -> Json:
    path = f"/v1/assets/files/{row['id']}/content"
    return {**shown(row), "path": call.base_url + path}


ASSET_FOLDERS = StudioKind(
    "asset folder", "/v1/assets/folders", "/v1/assets/folders", "folder", "folders",
    "asset_folders", "asset_folders",
    CLOSED.having("name", short="name", parent_folder_id=_PARENT_NUMBER),
    {"name": "", "parent_folder_id": None}, unique=("name", "parent_folder_id"),
    query=_ASSET_QUERY, clear=_empty_folder,
)  # fmt: skip
ASSETS = ASSET_FOLDERS._replace(
    noun="asset", path="/v1/assets/files", listed="/v1/assets", one="asset", many="assets",
    shelf="assets", blank={"name": "", "path": "", "size": 0, "parent_folder_id": None},
    show=_asset_document, brief=_asset_document, clear=StudioKind._field_defaults["clear"],
)  # fmt: skip
FOLDERS = StudioKind(
    "Design Studio folder", "/v1/design_studio/folders", "/v1/design_studio/folders",
    "folder", "folders", "ds_folders", "ds_folders",
    CLOSED.having("name", name=_FOLDER_NAME, parent_folder_id=_PARENT_UUID),
    {"name": "", "parent_folder_id": None}, clear=_keep_full_folder,
)  # fmt: skip
COMPONENTS = StudioKind(
    "Design Studio component", "/v1/design_studio/components", "/v1/design_studio/components",
    "component", "components", "ds_components", "ds_folders",
    CLOSED.having(
        "name tag content", short="name", text="content", parent_folder_id=_PARENT_UUID,
        tag=pattern_field(r"[A-Za-z][\w.-]{0,99}", "a tag name like my-button"),
    ),
    {"name": "", "tag": "", "content": "", "parent_folder_id": None}, unique=("tag",),
    brief=lambda call, row: without(shown(row), ["content"]),
    query={**_STUDIO_QUERY, "tag": _query_word},
)  # fmt: skip


# ---- emails and their translations


def languages_of(workspace: Workspace, email: Json) -> List[Json]:
    """The translations of an email."""
    return workspace.shelves["ds_translations"].where(language_group_id=email["id"])


def envelope_document(workspace: Workspace, envelope: Json) -> Json:
    """An envelope as answers show it: with the senders whom its numbers mean."""
    senders = workspace.shelves["sender_identities"].rows
    rows = {name: senders.get(envelope[f"{name}_id"]) or {} for name in ("from", "reply_to")}
    return {**envelope, **{n: r.get("address") or r.get("email") or "" for n, r in rows.items()}}


def _shared_parts(workspace: Workspace, email: Json, node: Json) -> Json:
    return {
        "is_template": email["is_template"],
        "is_linked": email["_link"] is not None,
        "parent_folder_id": email["parent_folder_id"],
        "available_languages": [row["language"] for row in languages_of(workspace, email)],
        **{name: node[name] for name in ("content", "transformers", "created", "updated")},
        "envelope": envelope_document(workspace, node["envelope"]),
    }


def _email_document(call: Call, row: Json) -> Json:
    return {"id": row["id"], "name": row["name"], **_shared_parts(call.workspace, row, row)}


def _email_brief(call: Call, row: Json) -> Json:
    translated = {"has_translations": bool(languages_of(call.workspace, row))}
    linked = {"is_linked": row["_link"] is not None}
    names = ("id", "name", "is_template", "parent_folder_id", "created", "updated")
    return {**{name: row[name] for name in names}, **linked, **translated}


def _clear_email(workspace: Workspace, email: Json) -> None:
    if email["_link"] is not None:
        raise ApiError(409, "cannot delete email because it is linked")
    for node in (*languages_of(workspace, email), email):
        _forget_node(workspace, node)


def _forget_node(workspace: Workspace, node: Json) -> None:
    """Delete what hangs on an email or translation, and the translation."""
    for name in ("ds_versions", "ds_previews"):
        for row in workspace.shelves[name].where(node_id=node["id"]):
            del workspace.shelves[name].rows[row["id"]]
    workspace.shelves["ds_translations"].rows.pop(node["id"], None)


EMAILS = StudioKind(
    "Design Studio email", "/v1/design_studio/emails", "/v1/design_studio/emails",
    "email", "emails", "ds_emails", "ds_folders",
    CLOSED.having(
        "name", short="name", flag="is_template", parent_folder_id=_PARENT_UUID, **_PARTS
    ),
    {
        "name": "", "is_template": False, "parent_folder_id": None, **_BLANK_PARTS,
        "_link": None, "_published": None,
    },
    query=_EMAIL_QUERY, show=_email_document, brief=_email_brief, clear=_clear_email,
)  # fmt: skip

_KIND_VERBS: Sequence[Tuple[str, str, str, Callable[..., Any]]] = (
    ("POST", "", "Create one {}.", lambda kind, call: put_up(kind, call, call.fields())),
    ("GET", "", "List every {} that fits the filters.", list_items),
    ("GET", "/{id}", "Read one {}.", read_item),
    ("PUT", "/{id}", "Change one {}.", update_item),
    ("DELETE", "/{id}", "Delete one {}.", delete_item),
)


def _serve_kind(kind: StudioKind) -> None:
    for method, end, summary, verb in _KIND_VERBS:
        path = (kind.listed if verb is list_items else kind.path) + end
        if (method, kind) != ("POST", ASSETS):
            text, handler = summary.format(kind.noun), functools.partial(verb, kind)
            fields = {"POST": kind.fields, "PUT": _changes(kind.fields)}.get(method)
            serve(method, path, text, handler, False, STUDIO, fields)


for _lying in (FOLDERS, COMPONENTS, EMAILS, ASSET_FOLDERS, ASSETS):
    _serve_kind(_lying)


def _seed_studio(kind: StudioKind) -> Seeder:
    def plant(workspace: Workspace, row: Json, where: str) -> None:
        email = _plant_item(workspace, kind, {**row, "parent_folder_id": None}, where)
        workspace.shelves[kind.shelf].change(
            email["id"], {"parent_folder_id": row.get("parent_folder_id")}
        )
        for other, at in _each(row.get("email_translations", []), f"{where}.email_translations"):
            _plant_translation(workspace, email, other, at)

    return plant


def _plant_item(workspace: Workspace, kind: StudioKind, row: Json, where: str) -> Json:
    """Put up what an answer of Design Studio shows; what it computes is left out."""
    stamps = dict.fromkeys(("created", "updated"), workspace.seconds())
    known = ("id", *stamps, *(name for name in kind.blank if name[0] != "_"))
    given = {name: row[name] for name in known if name in row}
    new = {"id": uuid_of(workspace.count("uuid")), **merged(kind.blank, given)}
    settled = _settled_row(kind, workspace, {**stamps, **new})
    return _shelve(workspace, kind.shelf, settled, where, kind.blank)


def _plant_translation(workspace: Workspace, email: Json, row: Json, where: str) -> None:
    parts = merged({name: email[name] for name in _PARTS}, {n: row[n] for n in _PARTS if n in row})
    stamps = {name: row.get(name, email[name]) for name in ("created", "updated")}
    own = {"language": row.get("language"), "language_group_id": email["id"], **stamps}
    id = uuid_of(workspace.count("uuid"))
    _shelve(workspace, "ds_translations", {"id": id, **parts, **own}, where)


SEEDERS.update(
    design_studio_folders=_seed_studio(FOLDERS),
    design_studio_components=_seed_studio(COMPONENTS),
    design_studio_emails=_seed_studio(EMAILS),
)

_EMAIL_PATH = "/v1/design_studio/emails/{id}"
MAX_VARIANTS = 50
_LANGUAGE_TAG = pattern_field(
    r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", "a language tag like es or pt-BR"
)


def _translation_of(call: Call, id: str, language: str) -> Tuple[Json, Json]:
    """An email and its translation into a language. Raises ApiError 404."""
    email = _studio_row(EMAILS, call, id)
    for row in languages_of(call.workspace, email):
        if row["language"] == language:
            return email, row
    raise resource_missing(f"there is no translation into {language!r:.40}")


def _translation_document(workspace: Workspace, email: Json, row: Json) -> Json:
    head = {name: row[name] for name in ("language", "language_group_id")}
    return {**head, **_shared_parts(workspace, email, row)}


_TRANSLATION = CLOSED.having("language", language=_LANGUAGE_TAG, **_PARTS)


@route("POST", _EMAIL_PATH + "/languages", STUDIO, fields=_TRANSLATION)
def create_email_translation(call: Call, id: str) -> Json:
    """Translate an email; what is left out is taken from the email itself."""
    fields, workspace = call.fields(), call.workspace
    with workspace.lock:
        email = _studio_row(EMAILS, call, id)
        if any(row["language"] == fields["language"] for row in languages_of(workspace, email)):
            raise constraint_error(f"there is a translation into {fields['language']} already")
        moment = dict.fromkeys(("created", "updated"), workspace.seconds())
        parts = merged({name: email[name] for name in _PARTS}, fields)
        row = {**parts, "language_group_id": email["id"], **moment}
        _check_senders(workspace, row)
        row = workspace.shelves["ds_translations"].add(row, uuid_of(workspace.count("uuid")))
        return {"email_translation": _translation_document(workspace, email, row)}


@route("GET", _EMAIL_PATH + "/languages", STUDIO)
def list_email_translations(call: Call, id: str) -> Json:
    """List the translations of an email."""
    workspace = call.workspace
    with workspace.lock:
        email = _studio_row(EMAILS, call, id)
        rows = languages_of(workspace, email)
        return {"email_translations": [_translation_document(workspace, email, r) for r in rows]}


@route("GET", _EMAIL_PATH + "/languages/{language}", STUDIO)
def get_email_translation(call: Call, id: str, language: str) -> Json:
    """Read the translation of an email into one language."""
    with call.workspace.lock:
        email, row = _translation_of(call, id, language)
        return {"email_translation": _translation_document(call.workspace, email, row)}


@route(
    "PUT",
    _EMAIL_PATH + "/languages/{language}",
    STUDIO,
    fields=_changes(CLOSED.having("", **_PARTS)),
)
def update_email_translation(call: Call, id: str, language: str) -> Response:
    """Change the translation of an email into one language."""
    fields, workspace = call.fields(), call.workspace
    with workspace.lock:
        row = _translation_of(call, id, language)[1]
        row = merged(row, {**fields, "updated": workspace.seconds()})
        _check_senders(workspace, row)
        workspace.shelves["ds_translations"].change(row["id"], row)
    return no_content()


@route("DELETE", _EMAIL_PATH + "/languages/{language}", STUDIO)
def delete_email_translation(call: Call, id: str, language: str) -> Response:
    """Delete the translation of an email into one language."""
    with call.workspace.lock:
        email, row = _translation_of(call, id, language)
        if row["id"] in (email["_published"] or ()):
            raise constraint_error("the translation is published")
        _forget_node(call.workspace, row)
    return no_content()


# ---- drafts: emails with their components put in

#: How many components one email may take in, those in components included, and its largest size.
MAX_COMPONENTS = 500
MAX_EMAIL = 1 << 21
_SLOT_TAG = re.compile(r"<slot\s*/>|<slot\s*>\s*</slot\s*>")


def compiled(html: str, components: Sequence[Json]) -> Tuple[str, List[Json]]:
    """HTML with the components in place of their tags, and the components it took.

    What a tag encloses goes to the component's `<slot/>`. Raises ApiError 400.
    """
    tags = {row["tag"]: row for row in components}
    opening = re.compile(f"<({'|'.join(map(re.escape, tags))})(?=[\\s/>])[^<>]*>")
    used, place, count = {}, 0, 0
    while tags and (match := opening.search(html, place)):
        count, place, row = count + 1, match.start(), tags[match[1]]
        closing = "" if match[0].endswith("/>") else f"</{match[1]}>"
        end = html.find(closing, match.end()) if closing else -1
        inner = html[match.end() : end] if end >= 0 else ""
        rest = html[end + len(closing) if end >= 0 else match.end() :]
        pieces = _SLOT_TAG.split(row["content"])
        if len(inner) * (len(pieces) - 1) > MAX_EMAIL:
            raise invalid(f"components make the email too large; see the tag {match[1]}")
        html = html[:place] + inner.join(pieces) + rest
        used[row["tag"]] = row
        if count > MAX_COMPONENTS or len(html) > MAX_EMAIL:
            raise invalid(f"components make the email too large; see the tag {match[1]}")
    return html, list(used.values())


class Draft(NamedTuple):
    """An email or a translation as it was at one moment; can be read without the lock."""

    node: Json
    email: Json
    envelope: Json
    content: Json
    components: List[Json]

    @property
    def language(self) -> str:
        """The language of a translation, "" for the email itself."""
        return cast(str, self.node.get("language", ""))

    @property
    def head(self) -> Json:
        """How answers name the email or translation."""
        named = {"node_id": self.node["id"], "node_type": "EMAIL"}
        return {**named, **({"language": self.language} if self.language else {})}

    def parts(self) -> Json:
        """All that a publish or a version keeps."""
        source = {name: self.node[name] for name in _PARTS}
        return {**source, "html": self.content["html"], "components": self.components}

    def sources(self) -> Dict[str, str]:
        """Every text with Liquid in it, by field."""
        names = ("from", "reply_to", "recipient", "bcc", "cc")
        return {**self.content, **{name: self.envelope.get(name, "") for name in names}}


def node_of(call: Call, id: str) -> Tuple[Json, Json]:
    """The email or translation with this id, and its email. Raises ApiError 404."""
    node = call.workspace.shelves["ds_translations"].rows.get(id.lower())
    node = node or cast(Attributes, _studio_row(EMAILS, call, id))
    return node, _studio_row(EMAILS, call, str(node.get("language_group_id", node["id"])))


def draft_of(call: Call, id: str) -> Draft:
    """The email or translation with this id, as it is now. Raises ApiError 404."""
    with call.workspace.lock:
        node, email = node_of(call, id)
        components = list(call.workspace.shelves["ds_components"].rows.values())
        envelope = envelope_document(call.workspace, node["envelope"])
    html, used = compiled(node["content"]["html"], components)
    return Draft(node, email, envelope, {**node["content"], "html": html}, used)


def liquid_errors(draft: Draft) -> List[str]:
    """What is wrong with the Liquid of a draft, without rendering it."""
    errors = []
    headers = [part for row in draft.envelope["headers"] for part in row.values()]
    for source in (*draft.sources().values(), *headers):
        try:
            parse_liquid(source)
        except LiquidError as error:
            errors.append(error.message)
    return errors


# ---- link and publish

#: Where an email may be linked to: the families, and the id that names one (reference).
LINK_TARGETS = {
    "transactional_message": ((TRANSACTIONAL,), "transactional_message_id"),
    "newsletter": ((NEWSLETTERS,), "newsletter_id"),
    "campaign_action": ((CAMPAIGNS, BROADCASTS), "action_id"),
}
_TARGET = _part_field(
    type=choice_field(*LINK_TARGETS), whole=" ".join(key for _, key in LINK_TARGETS.values())
)
_LINK = CLOSED.having("target", target=_TARGET, flag="force")


def _linked_content(call: Call, kind: str, number: int) -> Tuple[Family, Json]:
    """The content that a link's target means. Raises ApiError 404."""
    families = LINK_TARGETS[kind][0]
    if kind != "campaign_action":
        parent = family_row(call, families[0], str(number))
        return families[0], content_row(call, families[0], parent, language="")
    for family in families:
        if number in call.workspace.shelves[family.shelf].rows:
            return family, call.workspace.shelves[family.shelf].rows[number]
    raise resource_missing(f"there is no action {number}", "target")


@route("POST", _EMAIL_PATH + "/link", STUDIO, fields=_LINK)
def link_email(call: Call, id: str) -> Json:
    """Tie an email to the message whose content it is going to be."""
    fields, workspace = call.fields(), call.workspace
    target = fields["target"]
    key = LINK_TARGETS[target["type"]][1] if "type" in target else "type"
    if key not in target:
        raise required(f"target.{key}")
    with workspace.lock:
        email = _studio_row(EMAILS, call, id)
        family, content = _linked_content(call, target["type"], target[key])
        if content["type"] != "email":
            raise invalid(f"target: this is a {content['type']}, not an email", "target")
        link = {"target": target, "family": family.kind, "template_id": content["id"]}
        _take_link(workspace, email, link, fields.get("force") is True)
    return {"node_id": email["id"], "template_id": content["id"], "target": target}


def _take_link(workspace: Workspace, email: Json, link: Json, force: bool) -> None:
    same = ("family", "template_id")
    if email["_link"] and any(email["_link"][name] != link[name] for name in same):
        raise ApiError(400, "email is already linked to another destination; unlink it first")
    shelf = workspace.shelves["ds_emails"]
    for other in list(shelf.rows.values()):
        theirs = other["_link"] if other["id"] != email["id"] else None
        if theirs and all(theirs[name] == link[name] for name in same):
            if not force:
                raise ApiError(409, "destination is linked to other content; force replaces it")
            shelf.change(other["id"], {"_link": None, "_published": None})
    shelf.change(email["id"], {"_link": link})


def _linked_drafts(call: Call, id: str) -> List[Draft]:
    """An email that is linked, and its translations. Raises ApiError 400 or 404."""
    with call.workspace.lock:
        email = _studio_row(EMAILS, call, id)
        if email["_link"] is None:
            raise invalid("email is not linked; link it to a destination first")
        nodes = (email, *languages_of(call.workspace, email))
    return [draft_of(call, node["id"]) for node in nodes]


@route("POST", _EMAIL_PATH + "/publish", STUDIO, fields=NO_FIELDS)
def publish_email(call: Call, id: str) -> Json:
    """Copy an email and its translations to where it is linked to."""
    drafts, workspace = _linked_drafts(call, id), call.workspace
    errors = {draft.language: liquid_errors(draft) for draft in drafts}
    if any(errors.values()):
        wrong = {language or "default": rows for language, rows in errors.items() if rows}
        raise StudioError(422, "liquid validation failed", wrong)
    if len(drafts) > MAX_VARIANTS:
        raise ApiError(422, f"email has more than {MAX_VARIANTS} variants")
    with workspace.lock:
        publish_id = ulid(workspace.clock.now(), workspace.count("publish"))
        job = {"status": "pending", "mappings": None, "_email": drafts[0].email["id"]}
        workspace.shelves["ds_publishes"].add(job, publish_id)
        # A workspace that lags behind publishes late, too.
        if not workspace.settings.ingest_delay:
            # The reference gives the id of a pending one only; then nothing could be asked of this.
            return {**_do_publish(workspace, publish_id, drafts), "publish_id": publish_id}
        due = workspace.clock.now() + workspace.settings.ingest_delay
        workspace.agenda.later(due, publish_late, publish_id, drafts)
    return {"status": "pending", "publish_id": publish_id}


def _do_publish(workspace: Workspace, publish_id: str, drafts: List[Draft]) -> Json:
    link, now = drafts[0].email["_link"], workspace.seconds()
    mappings = []
    for draft in drafts:
        content = _put_content(workspace, link, draft)
        version = add_version(workspace, draft, f"Published {now}", on_publish=True)
        named = {"node_id": draft.node["id"], "language": draft.language}
        mappings.append({**named, "template_id": content["id"], "version_id": version["id"]})
    published = {draft.node["id"]: draft.parts() for draft in drafts}
    if drafts[0].email["id"] in workspace.shelves["ds_emails"].rows:
        workspace.shelves["ds_emails"].change(drafts[0].email["id"], {"_published": published})
    done = {"status": "done", "mappings": mappings}
    workspace.shelves["ds_publishes"].change(publish_id, done)
    return done


@chore
def publish_late(workspace: Workspace, publish_id: str, drafts: List[Draft]) -> None:
    """Publish in a workspace that lags behind."""
    try:
        with workspace.lock:
            _do_publish(workspace, publish_id, drafts)
    except ApiError as error:  # publish_status tells
        failed = {"_error": error.message, "_status": error.status}
        workspace.shelves["ds_publishes"].change(publish_id, failed)


def _put_content(workspace: Workspace, link: Json, draft: Draft) -> Json:
    """Write a draft into the content of its language at the link's target; gives the content."""
    family = FAMILIES[link["family"]]
    shelf = workspace.shelves[family.shelf]
    row = shelf.rows.get(link["template_id"])
    if row is None:
        raise resource_missing("the destination does not exist any more")
    if draft.language:
        own = {"parent_action_id": row["id"]} if family.content == "action" else {}
        found = shelf.where(_parent=row["_parent"], language=draft.language, **own)
        named = {"name": row["name"], "language": draft.language, **own}
        row = found[0] if found else add_content(workspace, family, row["_parent"], named)
    return shelf.change(row["id"], {**_as_content(draft), "updated": workspace.seconds()})


def _as_content(draft: Draft) -> Json:
    """A draft in the words of a message's content."""
    content, envelope = draft.content, draft.envelope
    plain = {"body_plain": content["text"]} if content["text"] else {}
    return {
        **{name: envelope.get(name, "") for name in ("from", "reply_to", "recipient", "bcc", "cc")},
        **{name: envelope[name] for name in ("from_id", "reply_to_id", "fake_bcc")},
        **{name: content[name] for name in ("subject", "preheader_text")},
        **plain,
        "headers": as_text(envelope["headers"]),
        "body": content["html"],
        "body_amp": content["amp"],
    }


@route("GET", _EMAIL_PATH + "/publish_status", STUDIO)
def get_publish_status(call: Call, id: str) -> Json:
    """Say whether a publish is done, and what came of it."""
    publish_id = call.request.query().get("publish_id")
    if not publish_id:
        raise required("publish_id", "the publish_id of a pending publish")
    with call.workspace.lock:
        email = _studio_row(EMAILS, call, id)
        job = call.workspace.shelves["ds_publishes"].rows.get(publish_id)
    if job is None or job["_email"] != email["id"]:
        raise ApiError(404, "publish job not found")
    if "_error" in job:
        raise ApiError(job["_status"], job["_error"])
    return {n: job[n] for n in ("status", "mappings") if job[n] is not None}


@route("GET", _EMAIL_PATH + "/unpublished_changes", STUDIO)
def check_unpublished_changes(call: Call, id: str) -> Json:
    """Say whether an email or a translation differs from what was published last."""
    drafts = _linked_drafts(call, id)
    current = {draft.node["id"]: draft.parts() for draft in drafts}
    return {"has_unpublished_changes": current != drafts[0].email["_published"]}


# ---- versions


def add_version(
    workspace: Workspace, draft: Draft, name: str, description: str = "", on_publish: bool = False
) -> Json:
    """Keep a draft as it is now."""
    about = {"description": description} if description else {}
    facts = {"created": workspace.seconds(), "created_on_publish": on_publish, "feedback": False}
    node = {"node_id": draft.node["id"], "node_type": "EMAIL"}
    ours = {"_parts": draft.parts(), "_of": draft.email["name"]}
    row = {"name": name, **about, **node, **facts, **ours}
    return workspace.shelves["ds_versions"].add(row, uuid_of(workspace.count("uuid")))


_VERSION = CLOSED.having("name", short="name", text="description")


@route("POST", _EMAIL_PATH + "/versions", STUDIO, fields=_VERSION)
def save_version(call: Call, id: str) -> Json:
    """Keep a version of an email, unless nothing has changed since the latest."""
    fields, draft, workspace = call.fields(), draft_of(call, id), call.workspace
    with workspace.lock:
        old = workspace.shelves["ds_versions"].where(node_id=draft.node["id"])[-1:]
        if old and old[0]["_parts"] == draft.parts():
            return {"created": False, "version": shown(old[0])}
        return {"created": True, "version": shown(add_version(workspace, draft, **fields))}


@route("GET", _EMAIL_PATH + "/versions", STUDIO)
def list_versions(call: Call, id: str) -> Json:
    """List the versions of an email, the newest first."""
    dates = read_query(call, {"start_date": _UNIX_TIME, "end_date": _UNIX_TIME})
    if dates["end_date"] is not None and dates["start_date"] is None:
        raise invalid("invalid query parameter: end_date needs start_date", "end_date")
    start, end = dates["start_date"] or 0, dates["end_date"]
    with call.workspace.lock:
        node = node_of(call, id)[0]
        rows = call.workspace.shelves["ds_versions"].where(node_id=node["id"])
    last = math.inf if end is None else end
    return {"versions": [shown(row) for row in rows[::-1] if start <= row["created"] <= last]}


def _version_of(call: Call, id: str, version_id: str) -> Json:
    node = node_of(call, id)[0]
    row = call.workspace.shelves["ds_versions"].rows.get(version_id.lower())
    if row is None or row["node_id"] != node["id"]:
        raise resource_missing("the email has no such version")
    return row


@route("GET", _EMAIL_PATH + "/versions/{version_id}", STUDIO)
def get_version(call: Call, id: str, version_id: str) -> Json:
    """Read a version of an email with the content and the components it had."""
    with call.workspace.lock:
        row = _version_of(call, id, version_id)
        parts = row["_parts"]
        envelope = envelope_document(call.workspace, parts["envelope"])
    content = parts["content"]
    optional = {n: content[n] for n in ("preheader_text", "text", "amp") if content[n]}
    node = {"node_id": row["node_id"], "node_type": "EMAIL", "name": row["_of"]}
    node.update(subject=content["subject"], content=content["html"], **optional)
    node.update(envelope=envelope, transformers=parts["transformers"])
    uses = [
        {"node_id": part["id"], "node_type": "COMPONENT", "name": part["name"],
         "component_name": part["tag"], "content": part["content"]}
        for part in parts["components"]
    ]  # fmt: skip
    return {"version": shown(row), "node": node, "dependencies": uses}


@route("DELETE", _EMAIL_PATH + "/versions/{version_id}", STUDIO)
def delete_version(call: Call, id: str, version_id: str) -> Response:
    """Delete a version of an email, unless a publish made it."""
    with call.workspace.lock:
        row = _version_of(call, id, version_id)
        if row["created_on_publish"]:
            raise ApiError(409, "cannot delete a version created on publish")
        del call.workspace.shelves["ds_versions"].rows[row["id"]]
    return no_content()


@route("POST", _EMAIL_PATH + "/versions/{version_id}/restore", STUDIO, fields=NO_FIELDS)
def restore_version(call: Call, id: str, version_id: str) -> Json:
    """Make an email what it was in one of its versions."""
    workspace = call.workspace
    with workspace.lock:
        row = _version_of(call, id, version_id)
        parts = {name: row["_parts"][name] for name in _PARTS}
        emails = workspace.shelves["ds_emails"]
        shelf = emails if row["node_id"] in emails.rows else workspace.shelves["ds_translations"]
        shelf.change(row["node_id"], {**parts, "updated": workspace.seconds()})
    node = row["node_id"]
    return {"node_id": node, "version_id": row["id"], "restored_node_ids": [node]}


# ---- render, preview and review

MAX_LINK_TEXT = 200


class PageReader:
    """What a preview and a review look for in HTML: its links, images and text."""

    def __init__(self, html: str) -> None:
        self.links: List[Json] = []
        self.without_alt: List[str] = []
        self._open: Optional[Json] = None
        self._hidden = 0
        self._text: List[str] = []
        for part in html_parts(html):
            if isinstance(part, str):
                self._read(text_of(part))
            elif part.closes:
                self._end(part.name)
            else:
                self._begin(part)

    @property
    def text(self) -> str:
        """The text a reader sees, line by line."""
        lines = (" ".join(line.split()) for line in "".join(self._text).split("\n"))
        return "\n".join(filter(None, lines))

    def _begin(self, tag: Tag) -> None:
        self._hidden += tag.name in _HIDDEN_TAGS
        if tag.name == "img" and tag.value("alt") is None:
            self.without_alt.append(tag.value("src") or "")
        if tag.name == "a":
            url = (tag.value("href") or "").strip()
            tracked = is_trackable(url, tag.value("class") or "")
            errors = [] if url else ["link has no URL"]
            self._open = {"url": url, "text": "", "tracked": tracked, "errors": errors}
            self.links.append(self._open)

    def _end(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _HIDDEN_TAGS))
        self._open = None if tag == "a" else self._open
        self._text.append("\n" if tag in _BLOCK_TAGS else "")

    def _read(self, text: str) -> None:
        if not self._hidden:
            self._text.append(text)
            if self._open is not None and len(self._open["text"]) < MAX_LINK_TEXT:
                self._open["text"] = " ".join((self._open["text"] + text).split())


_HIDDEN_TAGS = ("style", "script", "title")
_BLOCK_TAGS = ("p", "div", "tr", "li", "h1", "h2", "h3", "h4", "table", "title", "ul", "ol")

#: What may be given to a preview as data (reference).
PREVIEW_DATA = ("customer", "event", "trigger", "journey", "campaign", "message", "objects")
#: What a preview calls the errors in each field; the other keys of `errors` stay empty.
_ERROR_KEYS = {
    "html": "body", "amp": "body_amp", "text": "body_plain", "recipient": "to",
}  # fmt: skip
_PREVIEW_ERRORS = (
    "bcc", "body", "body_amp", "body_plain", "cc", "event", "from", "layout", "message",
    "preheader_text", "reply_to", "snippets", "subject", "to", "trigger",
)  # fmt: skip
#: What tags say in a message that isn't sent (inferred).
_UNSENT_LINKS = {
    name + "_url": f"https://track.customer.io/{name}/unsent"
    for name in ("unsubscribe", "manage_subscription_preferences", "view_in_browser")
}


class Proof(NamedTuple):
    """A draft rendered for somebody: its fields, and what is wrong with them."""

    fields: Dict[str, str]
    errors: Dict[str, List[str]]
    headers: List[Json]


def proof_of(call: Call, draft: Draft, data: Json, strict: Iterable[str]) -> Proof:
    """Render a draft with `data`; in `strict` namespaces a missing attribute is an error."""
    with call.workspace.lock:
        rows = list(call.workspace.shelves["snippets"].rows.values())
    world = {**{name: data.get(name) or {} for name in PREVIEW_DATA}, "delivery_id": "unsent"}
    world["snippets"] = {row["name"]: row["value"] for row in rows}
    complete, now, budget = frozenset(strict), call.workspace.clock.now(), Budget()

    def render(source: str) -> Tuple[str, List[str]]:
        try:
            return parse_liquid(source).render(world, complete, now, _UNSENT_LINKS, budget), []
        except LiquidError as error:
            return "", [error.message]

    made = {name: render(source) for name, source in draft.sources().items()}
    errors: Dict[str, List[str]] = {name: [] for name in _PREVIEW_ERRORS}
    errors.update((_ERROR_KEYS.get(name, name), found) for name, (_, found) in made.items())
    wrong = [
        {key: render(row.get(key, ""))[1] for key in ("name", "value")}
        for row in draft.envelope["headers"]
    ]
    headers = [row for row in wrong if any(row.values())]
    return Proof({name: text for name, (text, _) in made.items()}, errors, headers)


@route("GET", _EMAIL_PATH + "/render", STUDIO)
def render_email(call: Call, id: str) -> Json:
    """Give an email with its components put in; Liquid stays as it is."""
    draft = draft_of(call, id)
    optional = {name: draft.content[name] for name in ("text", "amp") if draft.content[name]}
    return {**draft.head, "html": draft.content["html"], **optional}


_SAMPLES = dict.fromkeys(PREVIEW_DATA, typed_field(dict, type(None)))


@route(
    "POST",
    _EMAIL_PATH + "/preview",
    STUDIO,
    True,
    CLOSED.having(flag="lax", **_SAMPLES),
)
def preview_email(call: Call, id: str) -> Json:
    """Render an email with sample data."""
    body, draft = call.fields(), draft_of(call, id)
    proof = proof_of(call, draft, body, () if body.get("lax") else PREVIEW_DATA)
    fields, page = proof.fields, PageReader(proof.fields["html"])
    plain = {"plaintext_body": fields["text"] or page.text}
    optional = {**{name: fields[name] for name in ("from", "text", "amp")}, **plain}
    return {
        **draft.head,
        **{name: fields[name] for name in ("subject", "preheader_text", "html")},
        **{name: text for name, text in optional.items() if text},
        "links": page.links,
        "headers": proof.headers,
        "errors": proof.errors,
    }


#: Gmail cuts off what is longer.
CLIPPED_AT = 102 * 1024
_UNSUBSCRIBE = re.compile(r"unsubscribe|manage_subscription_preferences", re.IGNORECASE)


class ReviewCheck(NamedTuple):
    """A check of a review: `test` gives the details of what is wrong, or "".

    Checks of the HTML are skipped where there is none.
    """

    severity: str
    title: str
    test: Callable[[Json, PageReader], str]
    of_html: bool = True


#: The checks of a review, under our own names: Customer.io's are not known.
REVIEW_CHECKS = {
    "subject": ReviewCheck("error", "The subject is missing", lambda content, page:
        "" if content["subject"].strip() else "write a subject", of_html=False),
    "preheader": ReviewCheck("tip", "The preheader text is missing", lambda content, page:
        "" if content["preheader_text"].strip() else "write one", of_html=False),
    "plain-text": ReviewCheck("warning", "The plain text version is missing", lambda content, page:
        "" if content["text"].strip() else "write a plain text", of_html=False),
    "image-alt": ReviewCheck("warning", "Images have no alt text", lambda content, page:
        ", ".join(page.without_alt)),
    "links": ReviewCheck("error", "Links lead nowhere", lambda content, page:
        ", ".join(row["text"] or "?" for row in page.links if row["errors"])),
    "size": ReviewCheck("warning", "Gmail clips the email", lambda content, page:
        "" if (size := len(content["html"].encode())) <= CLIPPED_AT
        else f"{size} bytes, {CLIPPED_AT} at most"),
    "unsubscribe": ReviewCheck("error", "The unsubscribe link is missing", lambda content, page:
        "" if _UNSUBSCRIBE.search(content["html"]) else "add one"),
}  # fmt: skip
#: What a failed check takes off the score of 100.
REVIEW_WEIGHTS = {"error": 20, "warning": 10, "tip": 5}


def _review_findings(draft: Draft, names: Iterable[str]) -> List[Json]:
    page, rows = PageReader(draft.content["html"]), []
    for name in names:
        check = REVIEW_CHECKS[name]
        wrong = check.test(draft.content, page)
        row = {"id": f"{draft.node['id']}:{name}", "check": name, "severity": check.severity}
        outcome = {"state": "fail", "details": wrong} if wrong else {"state": "pass"}
        rows.append({**row, "title": check.title, **outcome})
    return rows


@route("GET", _EMAIL_PATH + "/review", STUDIO, heavy=True)
def review_email(call: Call, id: str) -> Json:
    """Check an email for what readers and mail programs would stumble over."""
    draft = draft_of(call, id)
    head = {"node_id": draft.node["id"]}
    if liquid_errors(draft):
        return {**head, "status": "render_failed", "checks": {}, "findings": []}
    has_html = bool(draft.content["html"].strip())
    names = [name for name, check in REVIEW_CHECKS.items() if has_html or not check.of_html]
    checks = {name: "complete" if name in names else "skipped" for name in REVIEW_CHECKS}
    findings = _review_findings(draft, names)
    failed = [row["severity"] for row in findings if row["state"] == "fail"]
    counts = {severity: failed.count(severity) for severity in REVIEW_WEIGHTS}
    score = max(0, 100 - sum(REVIEW_WEIGHTS[severity] for severity in failed))
    return {
        **head,
        "status": "complete" if has_html else "partial",
        "checks": {**checks, "failed-components": "skipped"},
        "findings": findings,
        "score": {"score": score, "counts": counts},
    }


# ---- inbox previews: screenshots of mail programs, drawn from the rendered email

_PREVIEWS_PATH = "/v1/design_studio/inbox_previews"
MAX_SAMPLE_DATA = 128 * 1024
_RUN_FIELDS = CLOSED.having(
    "client_ids",
    client_ids=list_field(ANY_TEXT),
    text="name",
    object="sample_data",
    flag="lax_mode",
)
#: The captures of a client: width and lines of each.
CAPTURES = {"screenshot": (600, 40), "thumbnail": (150, 8), "full_thumbnail": (150, 40)}
_DAY = 86400


def _preview_clients(call: Call) -> Dict[str, Json]:
    """The mail programs there are. Raises ApiError 404 where nobody has set any up."""
    rows = cast(Dict[str, Json], call.workspace.shelves["inbox_preview_clients"].rows)
    if not rows:
        raise ApiError(404, "inbox previews are not enabled for this account")
    return rows


def _check_run(call: Call) -> Json:
    """The body of a run. Raises ApiError 400 or 404."""
    body = call.fields()
    data, ids = body.get("sample_data", {}), body["client_ids"]
    if len(compact(data)) > MAX_SAMPLE_DATA:
        raise invalid(f"sample_data cannot be larger than {MAX_SAMPLE_DATA} bytes", "sample_data")
    unknown = [id for id in ids if id not in _preview_clients(call)]
    if unknown or not ids or len(set(ids)) < len(ids):
        wrong = f"{unknown[0]!r:.60} is not a client" if unknown else "must be different clients"
        raise invalid(f"client_ids: {wrong}", "client_ids")
    return body


@route("POST", _EMAIL_PATH + "/inbox_previews", STUDIO, True, _RUN_FIELDS)
def submit_inbox_preview(call: Call, id: str) -> Json:
    """Draw an email as mail programs show it, each for one credit."""
    _preview_clients(call)
    body, draft, workspace = _check_run(call), draft_of(call, id), call.workspace
    # Where no sample is given, nothing can be missing from it (inferred).
    data = body.get("sample_data", {})
    proof = proof_of(call, draft, data, () if body.get("lax_mode") else data)
    wrong = [text for rows in proof.errors.values() for text in rows]
    text = proof.fields["text"] or PageReader(proof.fields["html"]).text
    order = {"body": body, "parts": draft.parts()}
    with workspace.lock:
        old = _run_today(workspace, draft, order)
        if old is not None:
            return {"run_id": old["id"], "replayed": True}
        _charge_credits(workspace, len(body["client_ids"]))
        now = workspace.seconds()
        row = {"name": body.get("name", ""), "node_id": draft.node["id"], "created_at": now}
        message = {"_subject": proof.fields["subject"], "_text": text, "_wrong": wrong}
        facts = {"client_ids": body["client_ids"], "updated_at": now}
        run = workspace.shelves["ds_previews"].add({**row, **facts, **message, "_order": order})
    return {"run_id": run["id"], "replayed": False}


def _run_today(workspace: Workspace, draft: Draft, order: Json) -> Optional[Json]:
    """The run that did the same today. Raises ApiError 409 if its name was used for another."""
    since = workspace.seconds() // _DAY * _DAY
    runs = workspace.shelves["ds_previews"].where(node_id=draft.node["id"])
    today = [run for run in runs if run["created_at"] >= since]
    same = [run for run in today if run["_order"] == order]
    name = order["body"].get("name")
    if not same and name and any(run["name"] == name for run in today):
        raise ApiError(409, f"batch {name!r:.100} was already charged today")
    return same[0] if same else None


def _charge_credits(workspace: Workspace, price: int) -> None:
    """Take credits, free ones first. Raises ApiError 403 without any account, 422 if too few."""
    shelf, now = workspace.shelves["inbox_preview_credits"], workspace.seconds()
    if not shelf.rows:
        raise ApiError(403, "this account cannot be charged for inbox previews")
    rows = [row for row in shelf.rows.values() if (row.get("expires_at") or math.inf) > now]
    rows.sort(key=lambda row: (row["tier"] != "free", row.get("expires_at") or math.inf))
    have = sum(row["credits_remaining"] for row in rows)
    if have < price:
        text = f"this request needs {price}, the account has {have} available"
        raise ApiError(422, f"insufficient inbox preview credits: {text}")
    for row in rows:
        part = min(price, row["credits_remaining"])
        shelf.change(row["id"], {"credits_remaining": row["credits_remaining"] - part})
        price -= part


def _run_totals(run: Json) -> Json:
    count = len(run["client_ids"])
    bounced = count if run["_wrong"] else 0
    return {
        "is_processed": True,
        "total_previews_requested": count,
        "total_previews_ready": count,
        "total_previews_succeeded": count - bounced,
        "total_previews_cached": 0,
        "total_previews_bounced": bounced,
        "created_at": run["created_at"],
        "updated_at": run["updated_at"],
    }


def _run_of(call: Call, id: str, run_id: str) -> Json:
    _preview_clients(call)
    node = node_of(call, id)[0]
    number = int(run_id) if re.fullmatch(r"\d{1,15}", run_id) else 0
    run = call.workspace.shelves["ds_previews"].rows.get(number)
    if run is None or run["node_id"] != node["id"]:
        raise resource_missing("the email has no such run")
    return run


@route("GET", _EMAIL_PATH + "/inbox_previews/{run_id}", STUDIO)
def get_inbox_preview_job(call: Call, id: str, run_id: str) -> Json:
    """Read a run of inbox previews."""
    with call.workspace.lock:
        run, clients = _run_of(call, id, run_id), dict(_preview_clients(call))
    base = call.base_url + call.request.path.rstrip("/")
    previews = [
        _preview_document(run, clients.get(name, {}), name, base) for name in run["client_ids"]
    ]
    named = {"run_id": run["id"], "name": run["name"], "client_ids": run["client_ids"]}
    return {**named, **_run_totals(run), "previews": previews}


def _preview_document(run: Json, client: Json, name: str, base: str) -> Json:
    about = {key: client[key] for key in ("category", "os", "browser") if client.get(key)}
    row = {"client_id": name, "display_name": client.get("client", name), **about}
    if run["_wrong"]:
        error = {"type": "other", "message": run["_wrong"][0]}
        return {**row, "status": "Bounced", "screenshots": {}, "error": error}
    url = f"{base}/captures/{quote(name, safe='')}?variant="
    images = {variant: url + variant for variant in ("thumbnail", "full_thumbnail")}
    shots = {"screenshots": {"default": url + "screenshot&key=default"}}
    return {**row, "status": "Complete", "cached": False, **shots, **images}


@route("GET", _EMAIL_PATH + "/inbox_previews/{run_id}/captures/{client_id}", STUDIO)
def get_inbox_preview_capture(call: Call, id: str, run_id: str, client_id: str) -> Response:
    """The picture of an email in one mail program."""
    query = read_query(call, {"variant": _query_one_of(tuple(CAPTURES), "screenshot")})
    key = call.request.query().get("key")
    if key not in ("default" if query["variant"] == "screenshot" else None, None):
        raise invalid("invalid query parameter: key must be one of the run's screenshots", "key")
    with call.workspace.lock:
        run = _run_of(call, id, run_id)
    if client_id not in run["client_ids"] or run["_wrong"]:
        raise resource_missing("the run has no picture of this client")
    picture = _drawing(run["_subject"], run["_text"], *CAPTURES[query["variant"]])
    return Response(200, picture, (("Content-Type", "image/svg+xml"), *SANDBOXED))


#: What XML can't hold.
_UNPRINTABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def _drawing(subject: str, text: str, width: int, lines: int) -> bytes:
    """An SVG of an email: the subject in bold, and the first lines of its text."""
    import textwrap

    subject, text = (_UNPRINTABLE.sub("", part) for part in (subject, text))
    rows = [row for line in text.split("\n") for row in textwrap.wrap(line, 72)][:lines]
    spans = [f'<text x="16" y="{64 + 20 * i}">{escape(row)}</text>' for i, row in enumerate(rows)]
    height = 72 + 20 * len(rows)
    frame = f'viewBox="0 0 600 {height}" width="{width}" height="{height * width // 600}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="sans-serif">'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    title = f'<text x="16" y="32" font-weight="bold">{escape(subject)}</text>'
    return (head + paper + title + "".join(spans) + "</svg>").encode("utf-8", "replace")


@route("GET", _PREVIEWS_PATH + "/jobs", STUDIO)
def list_inbox_preview_jobs(call: Call) -> Json:
    """List the runs of inbox previews, the newest first."""
    query = read_query(
        call, {"node_id": _query_word, "limit": _query_between(1, 1000, 50), "cursor": _UNIX_TIME}
    )
    with call.workspace.lock:
        _preview_clients(call)
        runs = list(call.workspace.shelves["ds_previews"].rows.values())[::-1]
    before = query["cursor"] or math.inf
    runs = [run for run in runs if run["id"] < before]
    runs = [run for run in runs if query["node_id"] in (None, run["node_id"])]
    page = runs[: query["limit"]]
    more = {"next_cursor": str(page[-1]["id"])} if len(runs) > len(page) else {}
    return {
        "preview_jobs": [_run_brief(run) for run in page],
        "meta": {"pagination": {"limit": query["limit"], **more}},
    }


def _run_brief(run: Json) -> Json:
    named = {"run_id": run["id"], "name": run["name"], "node_id": run["node_id"]}
    return {**named, "node_count": 1, **_run_totals(run)}


@route("GET", _PREVIEWS_PATH + "/clients", STUDIO)
def list_inbox_preview_clients(call: Call) -> Json:
    """List the mail programs that inbox previews can show."""
    with call.workspace.lock:
        return {"clients": [shown(row) for row in _preview_clients(call).values()]}


@route("GET", _PREVIEWS_PATH + "/credits", STUDIO)
def get_inbox_preview_credits(call: Call) -> Json:
    """Say how many credits for inbox previews are left."""
    names = ("tier", "credits_original", "credits_remaining", "expires_at")
    with call.workspace.lock:
        _preview_clients(call)
        rows = list(call.workspace.shelves["inbox_preview_credits"].rows.values())
    return {"credits": [{name: row.get(name) for name in names} for row in rows]}


# ---- asset files

MAX_ASSET = 2 * 1024 * 1024
MAX_ASSET_SIDE = 4096
#: What an asset may be, and how such a file begins (reference).
ASSET_TYPES = {
    "image/bmp": b"BM",
    "image/gif": b"GIF8",
    "image/jpeg": b"\xff\xd8\xff",
    "image/jpg": b"\xff\xd8\xff",
    "image/png": b"\x89PNG\r\n\x1a\n",
    "application/pdf": b"%PDF-",
}


def form_parts(call: Call) -> Dict[str, Any]:
    """The parts of a multipart/form-data body, by name. Raises ApiError 400."""
    from email import message_from_bytes
    from email.message import Message

    label = call.request.headers.get("content-type", "")
    if not label.lower().startswith("multipart/form-data"):
        raise ApiError(400, "send the file as multipart/form-data")
    head = f"Content-Type: {label}\r\n\r\n".encode("utf-8", "replace")
    parts = message_from_bytes(head + call.request.body).get_payload()
    if not isinstance(parts, list):
        raise ApiError(400, "the body is not multipart/form-data")
    named = ((_disposition(part, "name"), part) for part in parts if isinstance(part, Message))
    return {name: part for name, part in named if name}


def _disposition(part: Any, name: str) -> str:
    """A parameter of a part's Content-Disposition; browsers and SDKs write it in plain UTF-8."""
    raw = {key.lower(): value for key, value in part.raw_items()}.get("content-disposition", "")
    match = re.search(rf'[;\s]{name}="((?:[^"\\]|\\.)*)"|[;\s]{name}=([^;\s]+)', raw)
    text = (match[1] or match[2] or "") if match else ""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return re.sub(r"\\(.)", r"\1", text.replace("%22", '"'))


def pixels(type: str, data: bytes) -> Tuple[int, int]:
    """Width and height out of a picture's header; 0 where it doesn't tell."""
    place, size, order = {
        "image/png": (16, 4, "big"),
        "image/gif": (6, 2, "little"),
        "image/bmp": (18, 4, "little"),
    }.get(type, (_jpeg_frame(data) if type.startswith("image/jp") else 0, 2, "big"))
    sides = (data[place : place + size], data[place + size : place + 2 * size])
    first, second = (int.from_bytes(side, cast(Any, order), signed=size == 4) for side in sides)
    return (abs(first), abs(second)) if place else (0, 0)


_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg_frame(data: bytes) -> int:
    """Where height and width stand in a JPEG; 0 if nowhere."""
    place = 2
    while data[place : place + 1] == b"\xff" and len(data) > place + 4:
        if data[place + 1] in _JPEG_FRAMES:
            return place + 5
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0


def _check_file(type: str, data: bytes) -> None:
    if type not in ASSET_TYPES:
        raise invalid(f"file must be one of: {', '.join(ASSET_TYPES)}; not {type:.60}", "file")
    if len(data) > MAX_ASSET:
        raise invalid(f"file cannot be larger than {MAX_ASSET} bytes", "file")
    if not data.startswith(ASSET_TYPES[type]):
        raise invalid(f"file is not {type}: it begins otherwise", "file")
    if max(pixels(type, data)) > MAX_ASSET_SIDE:
        raise invalid(f"file cannot be more than {MAX_ASSET_SIDE} pixels wide or high", "file")


_ASSET_FORM = ASSETS.fields._replace(needed=(), free="multipart/form-data, not JSON").having(
    "file", file=ANYTHING._replace(type="a file")
)


@route("POST", ASSETS.path, STUDIO, True, _ASSET_FORM)
def create_asset(call: Call) -> Json:
    """Upload one file."""
    if len(call.request.body) > MAX_ASSET + 65536:
        raise invalid(f"file cannot be larger than {MAX_ASSET} bytes", "file")
    parts = form_parts(call)
    if "file" not in parts:
        raise required("file", "a part with a file")
    file, texts = parts["file"], {n: p.get_payload(decode=True) for n, p in parts.items()}
    type, data = file.get_content_type(), texts.pop("file") or b""
    _check_file(type, data)
    given = {name: (text or b"").decode("utf-8", "replace") for name, text in texts.items()}
    name = given.get("name", _disposition(file, "filename"))
    parent = whole_number(given.get("parent_folder_id") or None, "parent_folder_id")
    fields = ASSETS.fields.read({"name": name, "parent_folder_id": parent})
    text = base64.b64encode(data).decode()
    return put_up(ASSETS, call, {**fields, "size": len(data), "_type": type, "_data": text})


@route("GET", ASSETS.path + "/{id}/content", APP_OPEN)
def download_asset(call: Call, id: str) -> Response:
    """The file behind an asset's `path`; needs no credentials."""
    row = _studio_row(ASSETS, call, id)
    data = base64.b64decode(row["_data"])
    # Browsers show no PDF in a sandbox, and a PDF has no origin to act on.
    safe = APP.headers[1:] if row["_type"] == "application/pdf" else SANDBOXED
    return Response(200, data, (("Content-Type", row["_type"]), *safe))


# ---- live notifications

#: The most and the usual seconds that a live notification lives (reference).
LIVE_LIFE = 6 * 3600
_LIVE_TYPE = "io.customer.livenotifications."
#: What the built-in types have in `content_state`; `attributes` are alike (reference).
LIVE_TYPES = {
    _LIVE_TYPE + "segments": NO_FIELDS.having(
        "status segmentsTotal segmentsComplete", short="status", whole="segmentsComplete",
        segmentsTotal=number_field(1, 20, int), text="substatus trailingText",
    ),
    _LIVE_TYPE + "countdowntimer": NO_FIELDS.having(
        "title", short="title", text="statusMessage", whole="endTime"
    ),
}  # fmt: skip
_LIVE_HEADER = NO_FIELDS.having("header", short="header")


_FILLED = must_be("an object with a property", lambda value: value and isinstance(value, dict))
_ALERT = CLOSED.having("title body", filled="title body", text="sound")
_PUSH_PAYLOAD = FieldList(free="FCM and APNs").having(alert=object_field(_ALERT))
_LIVE_FIELDS = NO_FIELDS.having(
    content_state=_FILLED, attributes=_FILLED, push_payload=object_field(_PUSH_PAYLOAD),
    text="deep_link",
)  # fmt: skip
_START_FIELDS = _LIVE_FIELDS.having(
    "notification_type attributes content_state", short="device_id app_identifier",
    notification_type=pattern_field(r"[\w-]+(\.[\w-]+)+", "a reverse-DNS name"),
    platform=choice_field("ios", "android"), whole="expiration", any="identifiers",
)  # fmt: skip
_STEP_FIELDS = _LIVE_FIELDS.having(any="instance_id")


def _check_live_type(type: str, fields: Json) -> None:
    """Check what a built-in type needs. Raises ApiError 400."""
    if type in LIVE_TYPES:
        if "attributes" in fields:
            _LIVE_HEADER.read(fields["attributes"], "attributes.")
        LIVE_TYPES[type].read(fields.get("content_state", {}), "content_state.")


def _live_person(call: Call, identifiers: Json) -> Person:
    """The person whom a live notification is for. Raises ApiError 400 or 404."""
    kinds = ("id", "email", "phone", "internal")
    kind, value = one_identifier(identifiers, kinds, "identifiers")
    internal = kind == "internal"
    who = (
        ("cio_id", value[4:] if value.startswith("cio_") else value) if internal else (kind, value)
    )
    person = call.workspace.people.find(who)
    if person is None:
        raise ApiError(404, Problem(f"no person has the {kind} {value!r}", "identifiers"))
    return person


def _live_device(workspace: Workspace, person: Person, fields: Json) -> Optional[Device]:
    """The device that was used last, of those that fit. Raises ApiError 400."""
    app = fields.get("app_identifier")
    known = {device.attributes.get("app_identifier") for device in workspace.devices.rows.values()}
    if app is not None and known - {None} and app not in known:
        raise invalid("app_identifier: no device has this app", "app_identifier")
    fits = [
        device
        for device in person.has.devices.values()
        if fields.get("device_id", device.token) == device.token
        and fields.get("platform", device.platform) == device.platform
        and app in (None, device.attributes.get("app_identifier"))
    ]
    return max(fits, key=lambda device: device.last_used) if fits else None


def _live_state(row: Json, now: int) -> str:
    ended = "ended" if "ended_at" in row else "active"
    return "expired" if ended == "active" and now >= row["expires_at"] else ended


def _push_live(workspace: Workspace, row: Json, operation: str, message: Json) -> Json:
    """Send one step of a live notification to its device, and note it on the row."""
    now, device = workspace.clock.now(), workspace.devices.rows.get(row["_token"])
    delivery_id = delivery_id_of(now, workspace.count("delivery"), "transactional")
    delivery = Delivery(delivery_id, "live_notification", message, int(now))
    delivery.person, delivery.customer_id = workspace.people.at(row["_serial"]), row["_name"]
    delivery.recipient = row["_token"]
    workspace.deliveries.post(delivery)
    status, reason = ("sent", "") if device else ("undeliverable", "the person has no such device")
    workspace.deliveries.report(delivery, status, int(now), reason=reason)
    last = {"id": delivery_id, "operation": operation, "status": status, "source": "API"}
    shelf = workspace.shelves["live_notifications"]
    shelf.change(row["id"], {**row, "last_delivery": {**last, "created_at": int(now)}})
    return {"instance_id": row["id"]}


@route("POST", "/v1/live_notifications/start", APP, fields=_START_FIELDS)
def start_live_notification(call: Call) -> Json:
    """Start a live notification on a person's device."""
    body, workspace = call.body(), call.workspace
    fields = call.fields()
    _check_live_type(fields["notification_type"], fields)
    alert = "alert" in fields.get("push_payload", {})
    with workspace.lock:
        person = _live_person(call, body.get("identifiers"))
        device, now = _live_device(workspace, person, fields), workspace.seconds()
        found = device.platform if device else ("ios" if alert else "android")
        platform = fields.get("platform", found)
        if platform == "ios" and not alert:
            raise required("push_payload.alert", "title and body; iOS needs them")
        ends = fields.get("expiration") or now + LIVE_LIFE
        if not now <= ends <= now + LIVE_LIFE:
            raise invalid("expiration must be within 6 hours from now", "expiration")
        names = ("notification_type", "attributes", "content_state")
        row = {**{name: fields[name] for name in names}, "platform": platform, "started_at": now}
        row = {
            **row,
            "expires_at": ends,
            "_serial": person.serial,
            "_name": person.name,
            "_token": device.token if device else "",
        }
        instance_id = ulid(workspace.clock.now(), workspace.count("live notification"))
        row = workspace.shelves["live_notifications"].add(row, instance_id)
        return _push_live(workspace, row, "start", body)


def _live_row(call: Call, instance_id: Json) -> Json:
    """The live notification with this id. Raises ApiError 400 or 404."""
    if not isinstance(instance_id, str) or not re.fullmatch(
        f"[0-7][{_CROCKFORD}]{{25}}", instance_id
    ):
        raise invalid("instance_id must be a ULID", "instance_id")
    return shelved(call, "live_notifications", instance_id)


@route("POST", "/v1/live_notifications/update", APP, fields=_STEP_FIELDS.having("content_state"))
@route("POST", "/v1/live_notifications/end", APP, fields=_STEP_FIELDS)
def change_live_notification(call: Call) -> Json:
    """Update or end a live notification."""
    fields, body, workspace = call.fields(), call.body(), call.workspace
    operation = call.operation.path.split("/")[3]
    with workspace.lock:
        row, now = _live_row(call, body.get("instance_id")), workspace.seconds()
        state = _live_state(row, now)
        if state != "active":
            raise invalid(f"instance_id: the live notification has {state}", "instance_id")
        row = {**row, **{n: fields[n] for n in ("attributes", "content_state") if n in fields}}
        _check_live_type(row["notification_type"], row)
        row = {**row, "ended_at": now} if operation == "end" else row
        return _push_live(workspace, row, operation, body)


@route("GET", "/v1/live_notifications/{instance_id}", APP)
def get_live_notification(call: Call, instance_id: str) -> Json:
    """Read how a live notification is doing."""
    with call.workspace.lock:
        row = _live_row(call, instance_id)
    names = ("notification_type", "platform", "started_at", "expires_at", "ended_at")
    state = {"state": _live_state(row, call.workspace.seconds())}
    facts = {name: row[name] for name in names if name in row}
    return {"instance_id": row["id"], **facts, **state, "last_delivery": row["last_delivery"]}


# ======================================================================================
# ==== §22 Pipelines API
# ======================================================================================

MAX_PIPELINES_CALL = 32 * 1024
MAX_PIPELINES_BATCH = 500 * 1024

#: What a call must have, always and (first) in strict mode only. A row with several names wants
#: any one of them. The always-rows are the reference fake's.
PIPELINES_NEEDS: Dict[str, Tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]]] = {
    "identify": ([("userId", "anonymousId", "traits.email")], []),
    "track": ([("userId", "anonymousId", "groupId")], [("event",)]),
    "page": ([("userId", "anonymousId")], []),
    "screen": ([("userId", "anonymousId")], []),
    "group": ([("userId", "anonymousId")], [("groupId",)]),
    "alias": ([], [("userId",), ("previousId",)]),
}
#: What strict mode wants of semantic events that are nobody's (reference).
_REPORT_FIELDS: Dict[str, Sequence[Sequence[str]]] = {
    "Report Delivery Event": [("properties",)],
    "Report Content Event": [("properties",)],
}


_ON_EVERY_CALL = FieldList(lax=True, first=True).having(
    scalar="userId anonymousId", object="context integrations", any="type messageId timestamp "
    "originalTimestamp sentAt receivedAt version channel writeKey _metadata",
)  # fmt: skip
#: The fields of each call (reference, and what the official clients send).
PIPELINES_FIELDS = {
    "identify": _ON_EVERY_CALL.having(object="traits"),
    "track": _ON_EVERY_CALL.having(scalar="event groupId", object="properties"),
    "page": _ON_EVERY_CALL.having(scalar="name", any="category", object="properties"),
    "screen": _ON_EVERY_CALL.having(scalar="name", any="category", object="properties"),
    "group": _ON_EVERY_CALL.having(scalar="groupId", any="objectTypeId", object="traits"),
    "alias": _ON_EVERY_CALL.having(scalar="previousId"),
}
_CALL = ANYTHING._replace(
    type="a call", inner=lambda item: PIPELINES_FIELDS.get(as_text(item.get("type")))
)
_CALLS = _ON_EVERY_CALL.having("batch", batch=list_field(_CALL, 1, of="call"))


def _given(item: Json, name: str) -> bool:
    value = item
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value not in (None, "")


def check_pipelines_call(kind: str, item: Json, strict: bool) -> None:
    """Raises ApiError 400 for what is wrong with one call; much less so unless `strict`."""
    if not isinstance(item, dict):
        raise invalid(f"each call must be an object, not {kind_of(item)}")
    if len(compact(item)) > MAX_PIPELINES_CALL:
        raise invalid(f"a call cannot be larger than {MAX_PIPELINES_CALL} bytes")
    _check_names(kind, item, strict)
    if strict:
        PIPELINES_FIELDS[kind].read(item)


def _check_names(kind: str, item: Json, strict: bool = False) -> None:
    in_strict_mode, always = PIPELINES_NEEDS[kind]
    if kind == "track" and isinstance(item.get("event"), str):
        in_strict_mode = _REPORT_FIELDS.get(item["event"], in_strict_mode)
    for names in [*always, *(in_strict_mode if strict else ())]:
        if not any(_given(item, name) for name in names):
            raise required(" or ".join(names))


def _strict(call: Call) -> bool:
    return call.request.headers.get("x-strict-mode", "").strip() == "1"


def _check_strictly(workspace: Workspace, kind: str, item: Json) -> None:
    """Raises ApiError 400 for a call that could not be carried out."""
    check_pipelines_call(kind, item, True)
    with contextlib.suppress(Moot):
        _PIPELINES_VERBS[kind](workspace, item)


def _check_batch(workspace: Workspace, items: List[Json], shared: Json) -> None:
    problems = []
    for i, item in enumerate(items):
        try:
            if not isinstance(item, dict):
                raise invalid(f"each call must be an object, not {kind_of(item)}")
            chosen(item, "type", PIPELINES_FIELDS)
            _check_strictly(workspace, item["type"], {**shared, **item})
        except ApiError as error:
            problems.append(error.problems[0]._replace(batch_index=i))
    if problems:
        raise ApiError(400, *problems)


# ---- what Pipelines calls do to people (the mapping of Customer.io's own destination)

_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?(\.\d{1,9})?(Z|[+-]\d\d:?\d\d)?)?")
_DATE_FORMATS = ("%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%d%z")


def unix_time(value: Json) -> Json:
    """An ISO 8601 date as Unix seconds, UTC unless it says otherwise; other values as they are."""
    if not isinstance(value, str) or not _ISO_DATE.fullmatch(value):
        return value
    plain = re.sub(r"\.\d+", "", value).replace("Z", "+0000")
    zoned = plain if re.search(r"[+-]\d\d:?\d\d$", plain[10:]) else plain + "+0000"
    for form in _DATE_FORMATS:
        with contextlib.suppress(ValueError, OverflowError):
            return int(datetime.strptime(zoned, form).timestamp())
    return value


class Moot(ApiError):
    """A call that is in order, and has nobody or nothing to do anything to."""


def take_pipelines_call(workspace: Workspace, kind: str, item: Json) -> Outcome:
    """Keep a call word for word and do what it says; gives the reason why that was nothing.

    A call that can't be carried out is answered with 200 all the same (reference), so its
    mistakes are reasons here, not errors.
    """
    with workspace.lock:
        row = {"received_at": workspace.seconds(), **item, "type": kind}
        workspace.pipeline_events.append(row)
        try:
            check_pipelines_call(kind, item, strict=False)
            if item.get("integrations") and _is_kept_out(part_of(item, "integrations")):
                raise Moot(400, "integrations: the call says that it is not for Customer.io")
            return _PIPELINES_VERBS[kind](workspace, item)()
        except ApiError as error:
            workspace.drop(f"pipelines {kind}", ("type", kind), error.message)
            return Outcome("invalid", error.message)


def _is_kept_out(integrations: Json) -> bool:
    """Whether a call is for others only: `All` is false (reference), or our name is (inferred)."""
    named = [value for name, value in integrations.items() if name in _OUR_NAMES]
    return not any(named) if named else integrations.get("All") is False


_OUR_NAMES = ("Customer.io", "Customer.io Journeys", "Customer.io Data Pipelines")


def _user(workspace: Workspace, item: Json) -> Identifier:
    """Whom a call is about: the userId, else the anonymousId. Raises ApiError 400."""
    if item.get("userId") not in (None, ""):
        return _known_user(workspace, item)
    if item.get("anonymousId") not in (None, ""):
        return "anonymous_id", identifier_text(item["anonymousId"], "anonymousId")
    raise Moot(400, "nobody's: there is neither userId nor anonymousId")


def _known_user(workspace: Workspace, item: Json, name: str = "userId") -> Identifier:
    # By its shape, as in a v1 path; Segment's destination does the same (reference).
    return named_by_shape(workspace, identifier_text(item.get(name) or "", name), name)


def _dated(values: Json) -> Attributes:
    """The values with their dates as Unix seconds; in objects, too, but not in lists (Segment)."""
    return {
        name: _dated(value) if isinstance(value, dict) else unix_time(value)
        for name, value in values.items()
    }


def _object_ref(values: Json, object_id: Json) -> ObjectKey:
    """Type and id of an object; the type is "1" unless it is given (reference)."""
    type_id = values.get("objectTypeId") or values.get("object_type_id") or "1"
    return object_key({"object_type_id": type_id, "object_id": object_id}, "objectId")


_OBJECT_TRAITS = {
    "objectId", "object_id", "objectTypeId", "object_type_id", "relationshipAttributes",
    "objectAttributes",
}  # fmt: skip


def _own_traits(traits: Json) -> Attributes:
    """What traits say of whom or what they belong to, as attributes of Journeys."""
    given = {name: traits[name] for name in traits if name not in _OBJECT_TRAITS}
    attributes = _dated(given)
    if "createdAt" in attributes:
        attributes["created_at"] = attributes.pop("createdAt")
    return attributes


def _pipelines_identify(workspace: Workspace, item: Json) -> Action:
    traits = part_of(item, "traits")
    attributes = _own_traits(traits)
    if item.get("anonymousId"):
        attributes["anonymous_id"] = item["anonymousId"]
    who = ("email", as_text(traits.get("email") or ""))
    if item.get("userId") not in (None, ""):
        who = _known_user(workspace, item)
    if not who[1]:
        raise Moot(400, "nobody to identify yet: there is neither userId nor traits.email")
    object_id = traits.get("objectId") or traits.get("object_id")
    ref = _object_ref(traits, object_id) if object_id else ("", "")
    checked = checked_attributes(attributes, "traits")
    extra = _dated(part_of(traits, "relationshipAttributes"))

    def act() -> Outcome:
        reason = workspace.ingest(workspace.people.identify, who, checked)
        if not object_id:
            return reason
        return both(reason, workspace.ingest(workspace.objects.add_relationship, who, ref, extra))

    return act


def _event_verb(kind: str) -> Callable[[Workspace, Json], Action]:
    def verb(workspace: Workspace, item: Json) -> Action:
        properties = part_of(item, "properties")
        name = item.get("event") if kind == "event" else item.get("name") or properties.get("url")
        if name is None and kind != "event":
            raise Moot(400, f"a {kind} view of nothing: there is no name")
        who = _user(workspace, item)
        data, when = _dated(properties), unix_time(item.get("timestamp"))
        body = {"name": name, "type": kind, "data": data, "timestamp": when}
        body["id"] = item.get("messageId")
        anonymous = who[0] == "anonymous_id"
        event = event_of("anonymous" if anonymous else "", body)
        take = workspace.events.track_anonymous if anonymous else workspace.events.track
        return functools.partial(workspace.ingest, take, who, event)

    return verb


_pipelines_event = _event_verb("event")


def _pipelines_track(workspace: Workspace, item: Json) -> Action:
    event = item.get("event")
    verb = _SEMANTIC_EVENTS.get(event) if isinstance(event, str) else None
    return (verb or _pipelines_event)(workspace, item)


def _pipelines_group(workspace: Workspace, item: Json) -> Action:
    traits = part_of(item, "traits")
    ref = _object_ref({**item, **traits}, item.get("groupId"))
    own = {**_own_traits(traits), **_own_traits(part_of(traits, "objectAttributes"))}
    attributes = checked_attributes(own, "traits")
    extra = _dated(part_of(traits, "relationshipAttributes"))
    who = _user(workspace, item) if item.get("userId") or item.get("anonymousId") else ("", "")

    def act() -> Outcome:
        named = ("object_id", ref[1])
        reason = workspace.ingest(workspace.objects.identify_object, named, ref, attributes)
        if not who[0]:
            return reason
        return both(reason, workspace.ingest(workspace.objects.add_relationship, who, ref, extra))

    return act


def _pipelines_alias(workspace: Workspace, item: Json) -> Action:
    previous = _known_user(workspace, item, "previousId")
    who = _known_user(workspace, item)
    return functools.partial(workspace.ingest, workspace.people.merge, who, previous)


def _platform(workspace: Workspace, item: Json) -> Json:
    """The platform of a call's device, in lower case; its type need not be there (reference)."""
    given = part_of(item, "context", "device")
    type, token = as_text(given.get("type") or "").lower(), as_text(given.get("token") or "")
    system = as_text(part_of(item, "context", "os").get("name") or "").lower()
    known = workspace.devices.rows.get(token)
    if type or system in ("ios", "android"):
        return type or system
    if known is not None:
        return known.platform
    # Apple's tokens are 32 bytes or more in hex, Google's have other letters, too (inferred).
    return "ios" if re.fullmatch("[0-9A-Fa-f]{64,}", token) else "android"


def _device_updated(workspace: Workspace, item: Json) -> Action:
    given, who = part_of(item, "context", "device"), _known_user(workspace, item)
    attributes = {**part_of(given, "attributes"), **part_of(item, "properties")}
    device = {"token": given.get("token"), "attributes": attributes}
    device["platform"] = _platform(workspace, item)
    device["last_used"] = unix_time(item.get("timestamp"))
    checked = device_of(device, "token", workspace.seconds())
    return functools.partial(workspace.ingest, workspace.devices.add_device, who, *checked)


def _device_deleted(workspace: Workspace, item: Json) -> Action:
    token = as_text(part_of(item, "context", "device").get("token") or "")
    who = _known_user(workspace, item)
    return functools.partial(workspace.ingest, workspace.devices.delete_device, who, token)


def _application_opened(workspace: Workspace, item: Json) -> Action:
    event = _pipelines_event(workspace, item)
    if not part_of(item, "context", "device").get("token"):
        return event
    device = _device_updated(workspace, item)
    return lambda: both(event(), device())


def _person_event_verb(name: str) -> Callable[[Workspace, Json], Action]:
    return lambda workspace, item: functools.partial(
        workspace.ingest, getattr(workspace.people, name), _known_user(workspace, item)
    )


def _relationship_deleted(workspace: Workspace, item: Json) -> Action:
    properties, who = part_of(item, "properties"), _known_user(workspace, item)
    ref = _object_ref(properties, properties.get("objectId"))
    return functools.partial(workspace.ingest, workspace.objects.delete_relationship, who, ref)


def _object_deleted(workspace: Workspace, item: Json) -> Action:
    properties = part_of(item, "properties")
    ref = _object_ref(properties, properties.get("objectId"))
    named = ("object_id", ref[1])
    return functools.partial(workspace.ingest, workspace.objects.delete_object, named, ref)


def _delivery_reported(workspace: Workspace, item: Json) -> Action:
    properties = part_of(item, "properties")
    who = ("delivery_id", as_text(properties.get("deliveryId") or ""))
    chosen(properties, "metric", dict.fromkeys(METRICS))
    when = whole_number(unix_time(item.get("timestamp")), "timestamp")
    reason = as_text(properties.get("reason") or "")
    names = ("recipient", "href", "actionName", "actionValue")
    more = {name: properties.get(name) for name in names}
    report = (properties["metric"], when, reason, more)
    return functools.partial(workspace.ingest, workspace.deliveries.record_metric, who, *report)


_CONTENT_VERBS = {kind: _event_verb(kind) for kind in ("viewed_content", "clicked_content")}


def _content_reported(workspace: Workspace, item: Json) -> Action:
    properties = part_of(item, "properties")
    kind = as_text(properties.get("actionType") or "")
    # Anything else is accepted, and dropped later on (the browser SDK's source).
    whole = [type(properties.get(name)) is int for name in ("contentId", "templateId")]
    if kind not in _CONTENT_VERBS or not all(whole):
        text = f"actionType {' or '.join(_CONTENT_VERBS)}, and contentId and templateId as numbers"
        raise Moot(400, f"no report of content: it takes {text}")
    return _CONTENT_VERBS[kind](workspace, {**item, "name": kind})


#: What each kind of call does; they raise ApiError 400 before anything has happened.
_PIPELINES_VERBS: Dict[str, Callable[[Workspace, Json], Action]] = {
    "identify": _pipelines_identify,
    "track": _pipelines_track,
    "page": _event_verb("page"),
    "screen": _event_verb("screen"),
    "group": _pipelines_group,
    "alias": _pipelines_alias,
}

#: Track events that are instructions rather than events (reference: semantic events).
_SEMANTIC_EVENTS: Dict[str, Callable[[Workspace, Json], Action]] = {
    "Device Created or Updated": _device_updated,
    "Device Deleted": _device_deleted,
    "Application Installed": _application_opened,
    "Application Opened": _application_opened,
    "User Deleted": _person_event_verb("delete"),
    "Delete Person": _person_event_verb("delete"),
    "User Suppressed": _person_event_verb("suppress"),
    "User Unsuppressed": _person_event_verb("unsuppress"),
    "Relationship Deleted": _relationship_deleted,
    "Object Deleted": _object_deleted,
    "Report Delivery Event": _delivery_reported,
    "Report Content Event": _content_reported,
}


# ---- the operations


def take_call(kind: str, call: Call) -> Response:
    """Take one Pipelines call."""
    body = call.body()
    _check_names(kind, body)
    if _strict(call):
        _check_strictly(call.workspace, kind, body)
    return _taken(take_pipelines_call(call.workspace, kind, body))


def _taken(outcome: Outcome) -> Response:
    return with_reason(answer(PIPELINES, {"success": True}), outcome.text)


for _kind, _fields in PIPELINES_FIELDS.items():
    for _path, _api in ((_kind, PIPELINES), (_kind[0], PIPELINES_SDK)):
        _handler = functools.partial(take_call, _kind)
        serve(
            "POST",
            f"/v1/{_path}",
            f"Take a Pipelines {_kind} call.",
            _handler,
            False,
            _api,
            _fields,
        )


@route("POST", "/v1/b", PIPELINES_SDK, fields=_CALLS)
@route("POST", "/v1/batch", PIPELINES, fields=_CALLS)
def pipelines_batch(call: Call) -> Response:
    """Take several Pipelines calls at once; `context` and `integrations` count for all."""
    body, workspace = call.fields(), call.workspace
    items = body["batch"]
    shared = {name: body[name] for name in ("context", "integrations") if name in body}
    if call.request.size > MAX_PIPELINES_BATCH:
        text = f"a batch cannot be larger than {MAX_PIPELINES_BATCH} bytes"
        if _strict(call):
            raise invalid(text, "batch")
        workspace.drop("pipelines batch", ("type", "batch"), text)
        return _taken(Outcome("invalid", text))
    if _strict(call):
        _check_batch(workspace, items, shared)
    with workspace.lock:
        workspace.keep_batch("pipelines", items)
        reasons = [_take_item(workspace, item, shared) for item in items]
    return _taken(both(*reasons))


@route("GET", "/v1/projects/{write_key}/settings", PIPELINES_SDK)
def pipelines_settings(call: Call, write_key: str) -> Json:
    """Tell the browser SDK where to send its calls: here."""
    protocol, _, host = call.base_url.partition("://")
    ours = {"apiKey": write_key, "apiHost": f"{host}/v1", "protocol": protocol}
    # Without the second one its own metrics would go to the real service.
    return {"integrations": {"Customer.io Data Pipelines": ours}, "metrics": {"sampleRate": 0}}


def _take_item(workspace: Workspace, item: Json, shared: Json) -> Outcome:
    kind = as_text(item.get("type")) if isinstance(item, dict) else ""
    if kind in PIPELINES_FIELDS:
        return take_pipelines_call(workspace, kind, {**shared, **item})
    reason = f"unknown type of Pipelines call: {kind[:40]!r}"
    workspace.drop("batch", ("type", kind), reason)
    return Outcome("invalid", reason)


# ======================================================================================
# ==== §23 Control
# ======================================================================================


@route("GET", "/readyz", SHARED)
@route("GET", "/livez", SHARED)
@route("GET", "/health", SHARED)
def health(call: Call) -> Json:
    """Say that the fake is up."""
    return {"status": "ok"}


@route("GET", "/favicon.ico", SHARED)
def favicon(call: Call) -> Response:
    """Have none: browsers ask for it unasked."""
    return Response(204)


@route("GET", "/", SHARED)
def about(call: Call) -> Json:
    """Say what this is and where to go on."""
    return {
        "name": "customerio_fake",
        "version": __version__,
        "apis": ["track", "app", "pipelines"],
        "operations": len(ROUTES),
        "routes": "/__parlel/routes",
    }


_RESET = FieldList(closed=True, example={"only": "state"}).having(
    only=choice_field("state", *RESETS)
)


@route("POST", "/__parlel/reset", CONTROL, fields=_RESET)
def reset(call: Call) -> Json:
    """Forget everything that was recorded, or one part: `only` state, journal, faults, clock."""
    asked = _RESET.read({**call.request.query(), **call.body()})
    call.fake.reset(asked.get("only", ""))
    return {"status": "ok"}


# ---- workspaces


def workspace_record(fake: Fake) -> Json:
    """A further workspace as `/__parlel/workspaces` shows it: its name and its keys."""
    keys = {key: getattr(fake.settings, key) for key in WORKSPACE_KEYS}
    counts = {"people": len(fake.workspace.people), "requests": fake.journal.count}
    return {"name": fake.name, **keys, "path": f"/@{fake.name}", **counts}


_WORKSPACE_NAME = pattern_field(
    r"[A-Za-z0-9_.-]{1,60}", '1 to 60 letters, digits, dots, - or _, as in "worker-1"'
)


@route("GET", "/__parlel/workspaces", CONTROL)
def list_further_workspaces(call: Call) -> Json:
    """List the further workspaces with their keys."""
    rows = [workspace_record(fake) for fake in call.fake.root.others.values()]
    return {"workspaces": rows, "count": len(rows)}


_NEW_WORKSPACE = FieldList(
    closed=True, example={"name": "worker-1", "seed": {"customers": [{"id": "1"}]}}
).having(name=_WORKSPACE_NAME, object="seed")


@route("POST", "/__parlel/workspaces", CONTROL, heavy=True, fields=_NEW_WORKSPACE)
def create_workspace(call: Call) -> Json:
    """Make a workspace that only calls with its keys can see, optionally with a seed."""
    given = call.fields()
    return workspace_record(call.fake.root.add(given.get("name", ""), given.get("seed")))


@route("DELETE", "/__parlel/workspaces", CONTROL, heavy=True)
def delete_workspaces(call: Call) -> Json:
    """Let go of all further workspaces."""
    names = list(call.fake.root.others)
    for name in names:
        call.fake.root.remove(name)
    return {"removed": len(names)}


@route("DELETE", "/__parlel/workspaces/{name}", CONTROL, heavy=True)
def delete_workspace(call: Call, name: str) -> Json:
    """Let go of a workspace and all that it holds; its keys are unknown again."""
    call.fake.root.remove(name)
    return {"status": "ok"}


_SEED = FieldList(
    closed=True, example={"customers": [{"id": "1", "attributes": {"plan": "pro"}}]}
).having(rows=" ".join(SEEDERS), workspace=typed_field(dict, list))


@route("POST", "/__parlel/seed", CONTROL, heavy=True, fields=_SEED)
def seed(call: Call) -> Json:
    """Start afresh with what a seed document describes; later resets return to it."""
    if not call.request.body:  # as of `curl -d @file` with a misspelt name: it would wipe all
        raise invalid("send a seed document; {} is an empty one")
    call.fake.seed(call.body())
    return {"status": "ok"}


@route("GET", "/__parlel/seed", CONTROL)
def read_seed(call: Call) -> Json:
    """Read the seed document that a reset returns to; an empty one if there is none."""
    return call.fake.seeded_with or {}


@route("GET", "/__parlel/settings", CONTROL)
def read_settings(call: Call) -> Json:
    """Read what is set, with what it means and whether it is another value than usual."""
    settings, rows = call.fake.settings, []
    for part in fields(settings):
        value = getattr(settings, part.name)
        row = {"name": part.name, "value": value, "help": part.metadata["help"]}
        rows.append({**row, "changed": value != part.default})
    return {"settings": rows, "count": len(rows)}


@route("GET", "/__parlel/routes", CONTROL)
def list_routes(call: Call) -> Json:
    """List every operation that the fake answers, with the fields of its body."""
    return {"routes": [row.document() for row in ROUTES], "count": len(ROUTES)}


@route("GET", "/__parlel/openapi.json", CONTROL)
def openapi(call: Call) -> Json:
    """Describe the control endpoints in OpenAPI 3.1, for those who make a client of it."""
    paths: Dict[str, Json] = {}
    for row in ROUTES:
        if row.api is CONTROL:
            paths.setdefault(row.path, {})[row.method.lower()] = _described(row)
    info = {"title": "customerio_fake: control endpoints", "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _described(row: Operation) -> Json:
    words = re.findall(r"\w+", row.path)[1:]
    places = re.findall(r"{(\w+)}", row.path)
    text = {"schema": {"type": "string"}, "required": True, "in": "path"}
    told: Json = {
        "operationId": "_".join((row.method.lower(), *words)),
        "summary": row.summary,
        "parameters": [{"name": place, **text} for place in places],
        "responses": {"200": {"description": "as asked"}, "400": {"description": "refused"}},
    }
    if row.fields is not None and row.fields.checks:
        content = {"application/json": {"schema": _schema(row.fields)}}
        told["requestBody"] = {"content": content}
    return told


def _schema(fields: FieldList) -> Json:
    """A field list as JSON Schema: what a value must be is told in words."""
    parts = {name: {"description": check.type} for name, check in fields.checks.items()}
    shape = {"type": "object", "properties": parts, "required": list(fields.needed)}
    example = fields.example if isinstance(fields.example, dict) else None
    return {**shape, "examples": [example]} if example else shape


class Collection(NamedTuple):
    """What a control list shows: where its rows are in a Fake, and what their records are.

    `type` is a TypedDict, whose fields a query may filter by; `dict` means: by anything.
    """

    place: Union[str, Callable[[Any], Any]]
    type: Any
    record: Callable[[Any], Json]
    #: Fields that can be read without making a record, which takes ten times as long.
    quick: Mapping[str, Callable[[Any], Json]] = {}
    #: What `text` looks through; the whole record unless told.
    words: Optional[Callable[[Any], Json]] = None

    @property
    def fields(self) -> Tuple[str, ...]:
        """What a query may filter by; none means: by anything."""
        return ("id",) if self.type is str else tuple(getattr(self.type, "__annotations__", ()))

    def rows(self, world: Any) -> Any:
        """The rows in a Fake, or in what a snapshot holds."""
        place = operator.attrgetter(self.place) if isinstance(self.place, str) else self.place
        rows = place(world)
        return rows() if callable(rows) else rows

    def records(self, world: Any) -> Iterator[Json]:
        """Their records, made one by one."""
        # A copy, because the journal goes on while we read.
        return map(self.record, list(self.rows(world)))

    def shown(self, record: Json) -> Json:
        """A record as the list shows it."""
        return record["id"] if self.type is str else record

    def check(self, names: Iterable[str]) -> None:
        """Raises ApiError 400 for a name that no record has; dots reach into objects."""
        for name in names:
            if self.fields and name.partition(".")[0] not in self.fields:
                known = ", ".join(self.fields)
                raise invalid(f"there is no field '{name}' to filter by; there are {known}", name)


_to_record: Callable[[Any], Json] = operator.methodcaller("record")


def _listing(
    place: str, type: Any, record: Callable[[Any], Json] = _to_record, **more: Any
) -> Collection:
    return Collection(f"workspace.{place}", type, record, **more)


def _as_it_is(row: Json) -> Json:
    return row


def _read(*names: str) -> Dict[str, Callable[[Any], Json]]:
    return {name: operator.attrgetter(name) for name in names}


def _campaigns(workspace: Workspace) -> List[Json]:
    """The campaigns with their workflows: what the App API shows of it, and all else."""
    shelves, rows = workspace.shelves, []
    states: Dict[int, List[Any]] = {}
    places: Dict[int, List[Any]] = {}
    for journey in list(workspace.journeys.rows):
        states.setdefault(journey.campaign_id, []).append(journey.state)
        if journey.state == "active":
            places.setdefault(journey.campaign_id, []).append(journey.position)
    for row in list(shelves["campaigns"].rows.values()):
        contents = {part["id"]: part for part in shelves[CAMPAIGNS.shelf].where(_parent=row["id"])}
        top = [part for part in contents.values() if not part.get("parent_action_id")]
        flow = {**row.get("_journey", {})}
        tiles = _told_tiles(flow.pop("actions", top), contents)
        counts = {
            "journeys": _counted(states.get(row["id"], ())),
            "at": _counted(places.get(row["id"], ())),
        }
        rows.append({**shown(row), **shown(flow), **counts, "actions": tiles})
    return rows


def _counted(things: Iterable[Any]) -> Json:
    found: Dict[str, int] = {}
    for thing in map(str, things):
        found[thing] = found.get(thing, 0) + 1
    return found


def _told_tiles(tiles: Json, contents: Mapping[int, Json]) -> Json:
    """Tiles with what they send, on their paths, too."""
    if isinstance(tiles, list):
        return [_told_tiles(tile, contents) for tile in tiles]
    inner = {n: _told_tiles(tiles[n], contents) for n in ("paths", "variations") if n in tiles}
    return {**shown(contents.get(tiles.get("id", 0), {})), **shown(tiles), **inner}


#: The control lists.
COLLECTIONS = {
    "customers": _listing(
        "people",
        PersonRecord,
        quick={
            "id": lambda person: person.id or None,
            "attributes": Person.shown_attributes,
            "identifiers": Person.identifiers,
        },
        words=operator.attrgetter("id", "phone", "attributes"),
    ),
    "events": _listing(
        "events.rows",
        EventRecord,
        quick=_read("kind", "customer_id", "anonymous_id", "name", "type", "data"),
        words=operator.attrgetter("name", "customer_id", "anonymous_id", "data"),
    ),
    "deliveries": _listing(
        "deliveries.rows.values",
        DeliveryRecord,
        delivery_record,
        quick=_read(
            "delivery_id", "channel", "message", "customer_id", "recipient", "state", "parents"
        ),
    ),
    "devices": _listing("devices.rows.values", DeviceRecord),
    "objects": _listing("objects.rows.values", ObjectRecord),
    "segments": _listing("segments.rows.values", SegmentRecord),
    "forms": _listing(
        "forms.items", FormRecord, lambda form: {"id": form[0], "submissions": form[1]}
    ),
    "suppressed": _listing("people.suppressions", str, lambda name: {"id": name}),
    "broadcasts": _listing("broadcasts", BroadcastRecord, _as_it_is),
    "merges": _listing("people.merges", MergeRecord),
    "batches": _listing("batches", BatchRecord),
    "pipeline-events": _listing("pipeline_events", dict, _as_it_is),
    "webhooks": _listing("", ReportRecord)._replace(
        place=lambda world: reports_of(world.workspace)
    ),
    "requests": _listing("", RequestRecord)._replace(place="journal.rows"),
    "journeys": _listing("journeys.rows", JourneyRecord),
    "campaigns": _listing("", dict, _as_it_is)._replace(
        place=lambda world: _campaigns(world.workspace)
    ),
    "dropped": _listing("dropped", DroppedRecord, _as_it_is),
}


def copy_of(rows: List[Json]) -> List[Json]:
    """Data of the caller's own, which may be changed at will."""
    import copy

    return copy.deepcopy(rows)


def copied_records(fake: Fake, name: str) -> List[Json]:
    """All records of one of the COLLECTIONS, as its list shows them, for the caller's own use."""
    shown = COLLECTIONS[name].shown
    return copy_of([shown(record) for record in records_of(fake, name)])


def records_of(fake: Fake, name: str) -> List[Json]:
    """All records of one of the COLLECTIONS, oldest first."""
    fake.workspace.agenda.tick()
    with fake.workspace.lock:
        return list(COLLECTIONS[name].records(fake))


#: Lists whose records tell about people, too, who may come and go while they are made.
_ABOUT_PEOPLE = ("objects", "segments")


def records_aside(fake: Fake, name: str) -> List[Json]:
    """The same, holding others up as little as can be: what changes meanwhile is old or new."""
    if name in _ABOUT_PEOPLE:
        return records_of(fake, name)
    fake.workspace.agenda.tick()
    with fake.workspace.lock:
        rows = list(COLLECTIONS[name].rows(fake))
    return list(map(COLLECTIONS[name].record, rows))


def list_records(call: Call) -> Json:
    """List what was recorded of a kind; filter by field, page by limit and offset."""
    name, query = call.operation.path.split("/")[2], call.request.query()
    collection = COLLECTIONS[name]
    page, tests = _page(query, collection), _tests(query, name)
    # Only the records of the page are made, and with others held up as little as can be.
    with call.workspace.lock:
        rows = collection.rows(call.fake)
        rows = list(rows) if tests or isinstance(rows, deque) else rows
        if not tests or name in _ABOUT_PEOPLE:
            return _one_page(call.fake, name, page, tests, rows)
    return _one_page(call.fake, name, page, tests, rows)


def _one_page(fake: Fake, name: str, page: Page, tests: Sequence[Test], rows: Any) -> Json:
    for test in tests:
        rows = list(filter(test, rows))
    return listed(fake, name, page.records(rows, COLLECTIONS[name].record), len(rows))


def listed(fake: Fake, name: str, page: List[Json], count: int) -> Json:
    """A page of one of the COLLECTIONS as it is answered; `count` is of all pages."""
    collection = COLLECTIONS[name]
    key = "events" if name == "pipeline-events" else name
    answer = {key: [collection.shown(record) for record in page], "count": count}
    # What the journal does not keep may be what somebody looks for.
    dropped = {"requests": fake.journal.dropped, "deliveries": fake.workspace.deliveries.dropped}
    return {**answer, "dropped": dropped[name]} if name in dropped else answer


for _name in COLLECTIONS:
    route("GET", f"/__parlel/{_name}", CONTROL, heavy=True)(list_records)


class Page(NamedTuple):
    """Which part of a list is asked for, counted from its oldest or from its newest row."""

    offset: int
    limit: Optional[int]
    newest: bool
    #: Which fields of the records, all if none is named; and how much of their texts.
    fields: Sequence[str]
    cut: Optional[int]

    def records(self, rows: Any, record: Callable[[Any], Json]) -> List[Json]:
        """The records of the page."""
        end = None if self.limit is None else self.offset + self.limit
        rows = islice(reversed(rows) if self.newest else rows, self.offset, end)
        found = map(record, rows)
        if not self.fields:
            return list(found)
        return [self._parts(one) for one in found]

    def _parts(self, record: Json) -> Json:
        parts = {name: reach(record, name) for name in self.fields}
        return {
            name: value[: self.cut] if isinstance(value, str) else value
            for name, value in parts.items()
            if value is not MISSING
        }


def _page(query: Dict[str, str], collection: Collection) -> Page:
    """Take limit, offset, order, fields and cut out of a query. Raises ApiError 400."""
    numbers: Dict[str, Optional[int]] = {}
    for name in ("offset", "limit", "cut"):
        text = query.pop(name, None)
        if text is not None and not re.fullmatch(r"\d{1,9}", text):
            raise invalid(f"{name} must be a whole number from 0 up, as in ?{name}=10", name)
        numbers[name] = None if text is None else int(text)
    order = query.pop("order", "oldest")
    if order not in ("oldest", "newest"):
        raise invalid("order must be oldest or newest, which of them comes first", "order")
    names = [name for name in query.pop("fields", "").split(",") if name]
    collection.check(names)
    offset, limit, cut = numbers["offset"] or 0, numbers["limit"], numbers["cut"]
    return Page(offset, limit, order == "newest", names, cut)


#: Whether a row is one of those that are asked for.
Test = Callable[[Any], bool]


def _tests(query: Dict[str, str], name: str) -> List[Test]:
    """What a query asks of a row: fields as text, a text anywhere, a JSON `match`.

    The quickest come first. Raises ApiError 400.
    """
    collection, tests = COLLECTIONS[name], cast(List[Test], [])
    match, text = query.pop("match", None), query.pop("search", None) or query.pop("text", None)
    if name == "requests":
        tests += _journal_tests(query)
    query = in_full(name, query)
    collection.check(query)
    for path, wanted in query.items():
        _check_value(name, path, wanted)
        tests.append(_field_test(collection, path, wanted))
    if text:
        tests.append(_text_test(collection, text))
    if match is not None:
        document = in_full(name, decode_json(match.encode()))
        check_match(name, document)
        tests.append(lambda row: not differences(collection.record(row), document))
    return tests


def _journal_tests(query: Dict[str, str]) -> Iterator[Test]:
    since, event = whole_number(query.pop("since", None), "since"), query.pop("event", None)
    if since is not None:
        yield lambda entry: entry.number > since
    if event is not None:
        yield lambda entry: event in entry.record()["events"]


def _field_test(collection: Collection, path: str, wanted: str) -> Test:
    record, (first, _, rest) = collection.record, path.partition(".")
    quick = collection.quick.get(first)
    if quick is None:
        return lambda row: _as_shown(reach(record(row), path)) == wanted
    if not rest:
        return lambda row: as_text(quick(row)) == wanted
    return lambda row: _as_shown(reach(quick(row), rest)) == wanted


def _text_test(collection: Collection, text: str) -> Test:
    words, wanted = collection.words or collection.record, repr(text)[1:-1].lower()
    return lambda row: wanted in str(words(row)).lower()  # five times as fast as JSON


def _as_shown(value: Json) -> str:
    return as_text(None if value is MISSING else value)


#: What is not there, which is something else than null.
MISSING: Json = object()


def reach(row: Json, name: str) -> Json:
    """A field of a record; `data.items.0` reaches into it. MISSING if it isn't there."""
    if isinstance(row, list):
        number, _, rest = name.partition(".")
        if not number.isdecimal() or int(number[:9]) >= len(row):
            return MISSING
        found = row[int(number)]
        return reach(found, rest) if rest else found
    if not isinstance(row, dict):
        return MISSING
    if name in row or "." not in name:
        return row.get(name, MISSING)
    # An attribute may have dots in its own name.
    places = [match.start() for match in re.finditer(r"\.", name)]
    found = (reach(row.get(name[:place]), name[place + 1 :]) for place in places)
    return next((value for value in found if value is not MISSING), MISSING)


@route("GET", "/__parlel/requests/unmatched", CONTROL, heavy=True)
def list_unmatched(call: Call) -> Json:
    """List the requests that hit no operation."""
    page = _page(call.request.query(), COLLECTIONS["requests"])
    rows = list(call.fake.journal.rows)
    return _one_page(call.fake, "requests", page, [lambda row: not row.request.operation], rows)


@route("GET", "/__parlel/requests/{number}/curl", CONTROL, heavy=True)
def repeat_by_curl(call: Call, number: str) -> Response:
    """Print the command that repeats a request; the credentials are yours to fill in."""
    from shlex import quote as shell_quote

    for entry in list(call.fake.journal.rows):
        if str(entry.number) == number:
            words = _curl_words(entry.request, call.base_url, _secret(call.fake, entry.request))
            text = " ".join(map(shell_quote, words)) + "\n"
            return Response(200, text.encode("utf-8", "replace"), _PLAIN)
    raise ApiError(404, f"there is no request {number}; the journal keeps the newest only")


def _secret(fake: Fake, request: Request) -> str:
    """What stands in a repeated request for what is masked: keys, where it is nobody's secret."""
    settings, operation = fake.settings, request.operation
    if not settings.has_keys:
        return _ANY_KEY
    if fake.root is fake or operation is None:
        return "***"
    if request.headers.get("authorization", "")[:7].lower() == "bearer ":
        return settings.app_key if operation.api.name == "app" else settings.write_key
    pair = (settings.site_id, settings.api_key)
    user, password = pair if operation.api.name == "track" else (settings.write_key, "")
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _curl_words(request: Request, base_url: str, secret: str) -> List[str]:
    """The command; its keys are yours to fill in, unless they are known."""
    if request.size > MAX_KEPT_BODY:
        raise ApiError(404, f"a body of {request.size} bytes is too long to be kept whole")
    query = f"?{request.query_text}" if request.query_text else ""
    method = ["--head"] if request.method == "HEAD" else ["-X", request.method]
    # Nothing of the URL is a pattern, and dots in it are not curl's to resolve.
    words = ["curl", *method, "--globoff", "--path-as-is", base_url + request.path + query]
    for name, value in request.headers.items():
        if name not in _NOT_REPEATED:
            words += ["-H", f"{name}: {masked(name, value).replace('***', secret)}"]
    body = unsecret(request.plain()).decode("utf-8", "replace")
    if body and "content-type" not in request.headers:
        words += ["-H", "content-type:"]  # or curl would call it a form
    return [*words, *(["--data-raw", body] if body else [])]


#: "site:key" in base64, which is as good as any token, too.
_ANY_KEY = "c2l0ZTprZXk="
#: Headers that curl makes anew.
_NOT_REPEATED = (
    "host", "content-length", "connection", "transfer-encoding", "content-encoding", "expect",
)  # fmt: skip

_PLAIN = (("Content-Type", "text/plain; charset=utf-8"),)


# ---- assertions that explain themselves


class Expectation(NamedTuple):
    """What a test expects of one of the COLLECTIONS."""

    list: str
    #: Fields (dotted names reach into objects) and what each must be, or {"contains": text}.
    match: Json
    least: int = 1
    most: float = math.inf
    #: Matches that must follow each other, in this order, each beside `match`.
    in_order: Sequence[Json] = ()

    def describe(self) -> str:
        """What is expected, in words."""
        if self.in_order:
            return f"{self.list} in this order: {as_text(self.in_order)}"
        count = f"exactly {self.least}" if self.least == self.most else f"at least {self.least}"
        if self.least == 0:
            count = "none" if self.most == 0 else f"at most {self.most}"
        return f"{count} of {self.list} with {as_text(self.match):.500}"

    def judge(self, rows: List[Json]) -> Tuple[str, List[Json]]:
        """What is wrong with the records there are, or "", and those that are as wanted."""
        if self.in_order:
            return self._judge_order(rows)
        fitting = [row for row in rows if not differences(row, self.match)]
        if self.least <= len(fitting) <= self.most:
            return "", fitting
        text = f"expected {self.describe()}, but found {len(fitting)}{listing(fitting)}"
        if len(fitting) < self.least:
            text += nearest([row for row in rows if row not in fitting], self.match)
        return text if rows else f"{text}; nothing at all is recorded there", fitting

    def _judge_order(self, rows: List[Json]) -> Tuple[str, List[Json]]:
        rest = iter(rows)
        found: List[Json] = []
        for step in self.in_order:
            fits = (row for row in rest if not differences(row, self.match))
            fitting = next((row for row in fits if not differences(row, step)), None)
            if fitting is None:
                text = f"expected {self.describe()}, but {as_text(step)} does not come in its turn"
                return text + listing(rows), found
            found.append(fitting)
        return "", found


_ID_NAME = re.compile(r"(^|[._])id$|[a-z]Id$")
#: What a test may say of a value beside the value itself, as in {"gte": 5}; several must all hold.
MATCHERS: Dict[str, Callable[[Json, Json], bool]] = {
    "contains": lambda have, text: _has_text(have, as_text(text)),
    "regex": lambda have, pattern: (
        have is not MISSING and re.search(as_text(pattern), as_text(have)) is not None
    ),
    "gt": lambda have, than: _ordered(have, than, operator.gt),
    "gte": lambda have, than: _ordered(have, than, operator.ge),
    "lt": lambda have, than: _ordered(have, than, operator.lt),
    "lte": lambda have, than: _ordered(have, than, operator.le),
    "absent": lambda have, wanted: (have is MISSING) is bool(wanted),
    "one_of": lambda have, wanted: any(_fits(have, one) for one in wanted),
    "not": lambda have, wanted: not _fits(have, wanted),
}
_MATCHER_FIELDS = FieldList(
    {
        **dict.fromkeys(MATCHERS, ANYTHING),
        "regex": Check("a regular expression", lambda value: _wrong_pattern(value)),
        "absent": FLAG,
        "one_of": list_field(ANYTHING, 1),
    }
)  # fmt: skip


def _wrong_pattern(value: Json) -> str:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    return ""


def is_matcher(wanted: Json) -> bool:
    """Whether this is one of the MATCHERS, or several, and not a value."""
    return isinstance(wanted, dict) and bool(wanted) and MATCHERS.keys() >= wanted.keys()


def _ordered(have: Json, than: Json, holds: Callable[[Any, Any], bool]) -> bool:
    alike = type(have) is type(than) is str or {type(have), type(than)} <= {int, float}
    return alike and holds(have, than)


def differences(row: Json, match: Json) -> List[str]:
    """Where a record is not as wanted: "name is 'a', not 'b'"."""
    found = []
    for name, wanted in match.items():
        have = reach(row, name)
        if isinstance(have, dict) and isinstance(wanted, dict) and not is_matcher(wanted):
            found += [f"{name}.{text}" for text in differences(have, wanted)]
            continue
        # Ids are strings here, whatever a test makes them.
        alike = _ID_NAME.search(name) and {type(have), type(wanted)} == {int, str}
        if not (_fits(have, wanted) or (alike and as_text(have) == as_text(wanted))):
            found.append(f"{name} {_unlike(have, wanted)}")
    return found


def _unlike(have: Json, wanted: Json) -> str:
    """How a value differs from what was wanted; long texts line by line."""
    from difflib import unified_diff

    if have is MISSING:
        return f"is missing, not {as_text(wanted):.100}"
    if isinstance(have, str) and isinstance(wanted, str) and len(have) + len(wanted) > 200:
        sides = wanted.splitlines(), have.splitlines()
        lines = unified_diff(*sides, "wanted", "found", n=1, lineterm="")
        return "differs:" + "".join(f"\n      {line:.200}" for line in islice(lines, 40))
    # Quotes only where they make the difference.
    show = compact_text if as_text(have) == as_text(wanted) else as_text
    return f"is {show(have):.200}, not {show(wanted):.500}"


def _has_text(have: Json, text: str) -> bool:
    """Whether a text stands in a value: in it as JSON, or in any text inside."""
    inner = have.values() if isinstance(have, dict) else have if isinstance(have, list) else ()
    whole = "" if have is None or have is MISSING else as_text(have)
    return text in whole or any(_has_text(part, text) for part in inner)


_NUMBERS = (int, float)


def _are_among(steps: List[Json], wanted: List[Json]) -> bool:
    """Whether a journey took the steps that are wanted, in this order, whatever came between."""
    rest = iter(steps)
    return all(any(_fits(step, part) for step in rest) for part in wanted)


def _fits(have: Json, wanted: Json) -> bool:
    """Whether a value is as wanted: equal, as MATCHERS say, or an object with these parts."""
    if is_matcher(wanted):
        return all(MATCHERS[name](have, value) for name, value in wanted.items())
    if isinstance(wanted, dict) and isinstance(have, dict):
        return all(_fits(have.get(name, MISSING), part) for name, part in wanted.items())
    if isinstance(have, list) and have and isinstance(have[0], dict) and "outcome" in have[0]:
        return isinstance(wanted, list) and _are_among(have, wanted)
    if isinstance(wanted, list) and isinstance(have, list):
        return len(have) == len(wanted) and all(map(_fits, have, wanted))
    numbers = type(have) in _NUMBERS and type(wanted) in _NUMBERS  # 10 and 10.0, but not True
    return (numbers or type(have) is type(wanted)) and bool(have == wanted)


#: What a test may let happen to a delivery.
DELIVERY_METRICS = (
    *METRICS, "sent", "failed", "undeliverable", "unsubscribed", "attempted", "replied", "drafted",
    "prefetch_opened", "machine_clicked", "topic_unsubscribed", "suppressed",
    "tracking_consent_granted", "tracking_consent_denied",
)  # fmt: skip
_CHANNEL_NAMES = (*SEND_FIELDS, "webhook", "slack", "live_notification")
_IDENTIFIER_NAMES = ("id", "email", "cio_id", "phone")
#: The fields of records that are objects, and what may stand in those whose names are fixed.
OBJECT_FIELDS: Dict[str, Sequence[str]] = {
    **dict.fromkeys(
        ("attributes", "data", "message", "parents", "metrics", "payload", "body", "query",
         "headers", "response", "trigger", "properties", "traits", "context", "integrations"),
        (),
    ),
    **dict.fromkeys(("identifiers", "primary", "secondary"), _IDENTIFIER_NAMES),
    "rendered": (*(part for part, _ in _RENDERED_PARTS), "headers", "links"),
}  # fmt: skip
#: What a field of a list can be, where that is known.
FIELD_VALUES: Dict[Tuple[str, str], Callable[[], Iterable[str]]] = {
    ("events", "kind"): lambda: ("event", *EVENT_TYPES, "anonymous", "push"),
    ("deliveries", "state"): lambda: ("created", *DELIVERY_METRICS),
    ("deliveries", "channel"): lambda: _CHANNEL_NAMES,
    ("devices", "platform"): lambda: ("ios", "android"),
    ("journeys", "state"): lambda: JOURNEY_STATES,
    ("webhooks", "metric"): lambda: (
        "subscribed",
        "cio_subscription_preferences_changed",
        *{event for text in _CHANNEL_EVENTS.values() for event in text.split()},
    ),
    ("requests", "method"): lambda: {row.method for row in ROUTES} | {"HEAD", "OPTIONS", "PATCH"},
    ("requests", "api"): lambda: {row.api.name for row in ROUTES},
    ("requests", "operation"): lambda: {f"{row.method} {row.path}" for row in ROUTES},
}


#: Shorter names for what tests ask most: of the deliveries, what their recipients see.
SHORTHANDS = {
    "deliveries": {"to": "recipient", "subject": "rendered.subject", "body": "rendered.body"},
}


def in_full(name: str, match: Json) -> Json:
    """A match of a list with the full names of its fields. Raises ApiError 400."""
    if not isinstance(match, dict):
        raise invalid(f"match must be an object, not {kind_of(match)}", "match")
    full = SHORTHANDS.get(name, {})
    return {full.get(field, field): wanted for field, wanted in match.items()}


def check_match(name: str, match: Json) -> None:
    """Raises ApiError 400 for a match that no record can fit: `none` would always be true of it."""
    COLLECTIONS[name].check(match)
    for path, wanted in match.items():
        if is_matcher(wanted):
            _MATCHER_FIELDS.read(wanted, f"{path}.")
        elif isinstance(wanted, dict):
            _check_parts(path, wanted)
        elif isinstance(wanted, str):
            _check_value(name, path, wanted)


def _check_parts(path: str, wanted: Json) -> None:
    near = [word for word in wanted if spelt_alike(word.lower(), MATCHERS, 1)]
    if path.partition(".")[0] not in OBJECT_FIELDS:
        known = (
            f"there are {', '.join(MATCHERS)}" if not near else suggestion(near[0], list(MATCHERS))
        )
        raise invalid(f"{path} is no object: give a value, or a matcher; {known}", "match")
    known_parts = OBJECT_FIELDS.get(path, ())
    for name, part in wanted.items():
        if known_parts and name not in known_parts:
            raise invalid(f"{path} has no {name}; there are {', '.join(known_parts)}", "match")
        if is_matcher(part):
            _MATCHER_FIELDS.read(part, f"{path}.{name}.")
        odd = isinstance(part, dict) and [key for key in part if key.lower() in MATCHERS]
        if odd and not is_matcher(part):
            raise invalid(f"{as_text(part)} must have nothing but {', '.join(MATCHERS)}", "match")


def _check_value(name: str, path: str, wanted: str) -> None:
    known = sorted(FIELD_VALUES[name, path]()) if (name, path) in FIELD_VALUES else [wanted]
    if wanted not in known:
        raise invalid(f"no {path} is '{wanted}'; {suggestion(wanted, known, 3)}", "match")


def nearest(rows: List[Json], match: Json) -> str:
    """The records that come closest, each with the fields that differ."""
    found = [(differences(row, match), row) for row in rows]
    found.sort(key=lambda pair: (len(pair[0]), " is missing" in "".join(pair[0])))
    near = [[*texts, *_standing(row)] for texts, row in found[:3]]
    return "".join("\n  near miss: " + "\n             ".join(texts) for texts in near)


def _standing(row: Json) -> List[str]:
    """Where somebody stands in a journey, and what for; nothing for other records."""
    if "exit_reason" not in row:
        return []
    who = f"{row['customer_id'] or 'nobody'} in campaign {row['campaign_id']}"
    if row["state"] != "active":
        return [f"{who}: {row['state']}, {row['exit_reason'] or 'at the end'}"]
    until, what = row["next_wake_up"], row["waiting_for"] or "its turn"
    until = f" until {until}" if until else ""
    return [f"{who}: at action {row['next_action_id']}, waiting for {what}{until}"]


def listing(rows: List[Json]) -> str:
    """A few records, cut to a line each."""
    lines = [f"\n  found: {as_text(row)[:300]}" for row in rows[:5]]
    return "".join(lines) + (f"\n  and {len(rows) - 5} more" if len(rows) > 5 else "")


#: The longest that an assertion waits, in seconds.
MAX_WAIT = 300.0
_AMOUNTS = ("exactly", "at_least", "at_most", "none", "in_order")
_EXPECTATION_EXAMPLE = {
    "list": "events", "match": {"name": "signup", "customer_id": "1"}, "exactly": 1, "timeout": 5,
}  # fmt: skip
_EXPECTATION = FieldList(closed=True, example=_EXPECTATION_EXAMPLE).having(
    "list", list=choice_field(*COLLECTIONS), object="match", flag="none",
    in_order=list_field(OBJECT, 1, of="object"), timeout=number_field(0, MAX_WAIT, int, float),
    **dict.fromkeys(("exactly", "at_least", "at_most"), number_field(0, 10**9, int)),
)  # fmt: skip


def expectation_of(body: Json) -> Tuple[Expectation, float]:
    """An expectation and its time-out, seconds. Raises ApiError 400."""
    given = _EXPECTATION.read(body)
    amounts = [name for name in _AMOUNTS if given.get(name, False) is not False]
    if len(amounts) > 1 and amounts != ["at_least", "at_most"]:
        raise invalid(f"{amounts[0]} and {amounts[1]} exclude each other", amounts[1])
    least, most = given.get("at_least", int("at_most" not in given)), given.get("at_most", math.inf)
    if least > most:
        raise invalid(f"at_least {least} is more than at_most {most}", "at_least")
    if given.get("none") or "exactly" in given:
        least = most = given.get("exactly", 0)
    name = given["list"]
    match = in_full(name, given.get("match", {}))
    in_order = [in_full(name, step) for step in given.get("in_order", ())]
    wanted = Expectation(name, match, least, most, in_order)
    return wanted, given.get("timeout", 0)


def expect(
    fake: Fake, wanted: Expectation, timeout: float = 0, asked: Callable[[], bool] = lambda: True
) -> Tuple[str, List[Json]]:
    """What is wrong, once it is right or time is up, or ""; and the records that are as wanted.

    An upper limit alone (`none`, `at_most`) is watched for as long as `timeout` says, in seconds.
    Resets don't end the wait, which goes on in the new workspace; the end of the server does, or
    when nobody has `asked` any more. Raises ApiError 400 for a match that no record can fit.
    """
    for match in (wanted.match, *wanted.in_order):
        check_match(wanted.list, match)
    deadline, watching = time.monotonic() + min(timeout, MAX_WAIT), watches(wanted)
    judged: Tuple[str, List[Json]] = ("", [])
    while True:
        workspace = fake.workspace

        def ready(workspace: Workspace = workspace) -> bool:
            nonlocal judged
            judged = _looked_at(fake, wanted)
            decided = bool(judged[0]) is watching
            return fake.ended or decided or fake.workspace is not workspace

        workspace.news.wait_until(ready, max(0, deadline - time.monotonic()), asked)
        over, problem = time.monotonic() >= deadline, judged[0]
        if watching and not problem and not over and (fake.ended or not asked()):
            return f"expected {wanted.describe()}, but the watch was cut short", judged[1]
        decided = bool(problem) is watching and fake.workspace is workspace
        if decided or over or fake.ended or not asked():
            return problem and problem + setbacks(fake, wanted), judged[1]


def setbacks(fake: Fake, wanted: Expectation) -> str:
    """What was refused or dropped lately, where too little was found: often that is why."""
    if watches(wanted) or wanted.list in ("requests", "dropped"):
        return ""
    with fake.workspace.lock:
        entries, dropped = list(fake.journal.rows), fake.workspace.dropped[-3:]
    refused = [entry for entry in entries if entry.response.status >= 400][-3:]
    lines = [f"\n  refused: {entry.line()}" for entry in refused]
    for row in dropped:
        lines.append(f"\n  dropped: {row['operation']} of {row['customer_id']}: {row['reason']}")
    return "".join(lines)


def watches(wanted: Expectation) -> bool:
    """Whether it is about what must not come."""
    return wanted.least == 0 and not wanted.in_order


def _looked_at(fake: Fake, wanted: Expectation) -> Tuple[str, List[Json]]:
    rows, collection = records_aside(fake, wanted.list), COLLECTIONS[wanted.list]
    problem, found = wanted.judge(rows)
    dropped = fake.journal.dropped
    if not problem and wanted.list == "requests" and dropped and wanted.most < math.inf:
        problem = (
            f"expected {wanted.describe()}; of those that are kept it is so, but {dropped} older "
            f"requests are not kept: raise --journal ({len(rows)}), or reset before"
        )
    return problem, [collection.shown(row) for row in found]


@route("POST", "/__parlel/assert", CONTROL, heavy=True, fields=_EXPECTATION)
def assert_recorded(call: Call) -> Json:
    """Check what was recorded, or wait for it: gives the records, or says what differs."""
    wanted, timeout = expectation_of(call.body())
    problem, found = expect(call.fake, wanted, timeout, call.request.awaited)
    if problem:
        raise ApiError(422, problem)
    return {"status": "ok", "records": found}


# ---- what has changed

#: What stands for a list, where that is not how long it is.
_SIGNS: Dict[str, Callable[[Fake], Any]] = {
    "requests": lambda fake: fake.journal.count,
    "events": lambda fake: (len(fake.workspace.events.rows), len(fake.workspace.people.merges)),
    "segments": lambda fake: [len(row.members) for row in list(COLLECTIONS["segments"].rows(fake))],
    "forms": lambda fake: [len(rows) for rows in list(fake.workspace.forms.values())],
    "webhooks": lambda fake: (fake.workspace.ground.counters.get("report"), fake.outbox.tried),
    # Where there are any, whatever happens may move them on.
    "journeys": lambda fake: (
        len(fake.workspace.journeys.rows)
        and (fake.workspace.ground.noted, len(fake.workspace.clock.pending))
    ),
    "campaigns": lambda fake: [
        (row["id"], row.get("state"), row.get("updated"))
        for row in list(fake.workspace.shelves["campaigns"].rows.values())
    ],
    "clock": lambda fake: _clock_sign(fake.workspace.clock),
    "faults": lambda fake: [(row.id, row.matched) for row in list(fake.faults.rows.values())],
    "workspaces": lambda fake: list(fake.root.others),
}
#: The lists that activities tell of, and how many of those are gone through.
_NOTED, _MOST_NOTED = ("customers", "events", "deliveries", "devices", "objects"), 1000


def _clock_sign(clock: Clock) -> Any:
    shown = clock.now() if clock.frozen else round(clock.now() - time.time())
    return clock.frozen, shown, len(clock.pending)


def _told_by(activity: Activity) -> str:
    """The list with what an activity tells of."""
    if activity.delivery is not None:
        return "deliveries"
    if activity.type.startswith(("_o:", "_r:", "relationship")):
        return "objects"
    told = {"device_change": "devices", "anon_merge": "events"}
    return told.get(activity.type, "events" if activity.name else "customers")


def _noted_since(ground: Ground, number: int) -> Set[str]:
    """The lists that activities tell of which are newer than `number`. Under the lock."""
    if not 0 <= ground.noted - number <= _MOST_NOTED:
        return set(_NOTED)
    return {_told_by(row) for row in islice(reversed(ground.activities), ground.noted - number)}


def note_changes(fake: Fake) -> Changes:
    """Look what has changed in the lists, the clock, the faults and the workspaces by now."""
    ground, changes, found = fake.workspace.ground, fake.changes, cast(Dict[str, Any], {})
    with changes.lock, fake.workspace.lock:
        told = _noted_since(ground, changes.noted)
        for name in (*COLLECTIONS, "clock", "faults", "workspaces"):
            sign = _SIGNS[name](fake) if name in _SIGNS else len(COLLECTIONS[name].rows(fake))
            last = ground.noted if name in told else changes.signs.get(name, (0, 0, 0))[2]
            found[name] = (fake.begun, sign, last)
        changes.note(found, ground.noted)
    return changes


_CHANGES = FieldList(
    {
        "since": number_field(0, MAX_NUMBER, int),
        "timeout": number_field(0, MAX_WAIT, int, float),
    },
    closed=True,
)


def _number_in(text: str) -> Json:
    with contextlib.suppress(ValueError):
        return int(text) if text.isdecimal() else float(text)
    return text


@route("GET", "/__parlel/changes", CONTROL)
def list_changes(call: Call) -> Json:
    """Tell which lists have changed `since` a number, or wait for that up to `timeout` seconds."""
    fake, request = call.fake, call.request
    query = {name: _number_in(text) for name, text in request.query().items()}
    given, changes = _CHANGES.read(query), note_changes(fake)
    changed, now = changes.since(given.get("since", 0)), time.monotonic()
    request.until = getattr(request, "until", now + given.get("timeout", 0))
    if changed or fake.ended or now >= request.until:
        return {"number": changes.number, "changed": changed}
    nothing_yet = Response()
    nothing_yet.later = True
    return nothing_yet


@route("GET", "/__parlel/customers/{customer_id}", CONTROL)
def show_customer(call: Call, customer_id: str) -> Json:
    """Show one person, by id, email or cio_id."""
    with call.workspace.lock:
        return _person_named(call, customer_id).record()


def _person_named(call: Call, name: str) -> Person:
    person = person_called(call.workspace.people, name)
    if person is None:
        raise ApiError(404, f"no person has the id, email or cio_id '{name}'")
    return person


@route("GET", "/__parlel/customers/{customer_id}/profile", CONTROL)
def show_profile(call: Call, customer_id: str) -> Json:
    """Show one person with the times of attributes and all that belongs to it."""
    workspace = call.workspace
    with workspace.lock:
        person = _person_named(call, customer_id)
        segments, topics = workspace.segments, workspace.shelves["topics"].rows.values()
        return {
            **person.record(),
            "timestamps": person.timestamps,
            "anonymous_ids": person.has.anonymous_ids,
            "devices": [device.record() for device in person.has.devices.values()],
            "segments": [
                {"id": number, "name": segment.name, "type": segment.type}
                for number, segment in segments.rows.items()
                if segments.is_member(person, number)
            ],
            "objects": [
                {"object_type_id": key[0], "object_id": key[1], "attributes": attributes}
                for key, attributes in person.has.relationships.items()
            ],
            "topics": [
                {**shown(topic), "subscribed": subscribed_to(workspace, person, topic)}
                for topic in topics
            ],
        }


@route("GET", "/__parlel/deliveries/{delivery_id}", CONTROL)
def show_delivery(call: Call, delivery_id: str) -> Json:
    """Show one delivery."""
    with call.workspace.lock:
        return delivery_record(known_delivery(call, delivery_id))


def known_delivery(call: Call, delivery_id: str) -> Delivery:
    """A delivery by its id. Raises ApiError 404."""
    delivery = call.workspace.deliveries.rows.get(delivery_id)
    if delivery is None:
        raise ApiError(404, f"there is no delivery '{delivery_id}'")
    return delivery


# ---- journeys


def journey_of(call: Call, journey_id: str) -> Journey:
    """A journey by its id. Raises ApiError 404."""
    for journey in call.workspace.journeys.rows:
        if journey.id == journey_id:
            return journey
    raise ApiError(404, f"there is no journey '{journey_id}'")


@route("GET", "/__parlel/journeys/{journey_id}", CONTROL)
def show_journey(call: Call, journey_id: str) -> Json:
    """Show one journey with all its steps."""
    with call.workspace.lock:
        return journey_of(call, journey_id).record()


@route("POST", "/__parlel/journeys/{journey_id}/force_exit", CONTROL, fields=NO_FIELDS)
def force_exit(call: Call, journey_id: str) -> Json:
    """Take one person out of a campaign, wherever they stand."""
    with call.workspace.lock:
        journey = journey_of(call, journey_id)
        if journey.state != "active":
            raise ApiError(409, f"the journey '{journey_id}' is over: {journey.state}")
        call.workspace.beside(Runner).leave(journey, "force_exit")
        return journey.record()


#: What becomes of a campaign, of those inside once it stops, of those who match once it starts.
_CAMPAIGN_CHANGE = FieldList(
    closed=True, needed=("state",), example={"state": "stopped", "journeys": "finish"}
).having(
    state=choice_field(*CAMPAIGN_STATES), journeys=choice_field("finish", "exit"),
    audience=choice_field("current", "future"),
)  # fmt: skip


@route("PUT", "/__parlel/campaigns/{campaign_id}", CONTROL, fields=_CAMPAIGN_CHANGE)
def put_campaign(call: Call, campaign_id: str) -> Json:
    """Start or stop a campaign, which the App API can't."""
    given, number = call.fields(), path_number(call.workspace, campaign_id)
    with call.workspace.lock:
        if number not in call.workspace.shelves["campaigns"].rows:
            raise ApiError(404, f"there is no campaign {number}")
        wishes = given.get("journeys", "finish"), given.get("audience", "future")
        change_campaign(call.workspace, number, given["state"], *wishes)
        row = call.workspace.shelves["campaigns"].rows[number]
        return {"campaign": family_document(call.workspace, CAMPAIGNS, row)}


@route("DELETE", "/__parlel/customers/{customer_id}", CONTROL)
def forget_customer(call: Call, customer_id: str) -> Json:
    """Remove one person, by id, email or cio_id, as a delete in Track does."""
    person = show_customer(call, customer_id)
    call.workspace.apply(call.workspace.people.delete, ("cio_id", person["cio_id"]), ())
    return person


@route("DELETE", "/__parlel/deliveries/{delivery_id}", CONTROL)
def forget_delivery(call: Call, delivery_id: str) -> Json:
    """Remove one delivery from all lists and counts."""
    record = show_delivery(call, delivery_id)
    with call.workspace.lock:
        call.workspace.deliveries.forget(delivery_id)
    return record


#: What may be said of something that happens to a delivery, beside when and why.
_TOLD_OF = (
    "href", "link_id", "recipient", "device_id", "tracked_response", "metadata", "to",
    "inbound_event_id",
)  # fmt: skip


def _known_link(delivery: Delivery, body: Json) -> Optional[int]:
    """The number of a link that a message has, or that comes with its `href`."""
    number = whole_number(body["link_id"], "link_id")
    known = [row["id"] for row in delivery.rendered.get("links", ())]
    if number not in known and not body.get("href"):
        raise invalid(f"link_id {number} is in no link of this message: {known}", "link_id")
    return number


_HAPPENING = FieldList(
    closed=True, example={"href": "https://example.com/", "timestamp": 1700000000}
).having(any=f"reason {' '.join(_TOLD_OF)}", number="timestamp link_id")


@route("POST", "/__parlel/deliveries/{delivery_id}/{metric}", CONTROL, fields=_HAPPENING)
def let_happen(call: Call, delivery_id: str, metric: str) -> Json:
    """Let something happen to a delivery: opened, clicked, bounced, unsubscribed, and so on."""
    body, workspace = call.fields(), call.workspace
    if metric not in DELIVERY_METRICS:
        raise ApiError(404, f"'{metric}' is none of {', '.join(DELIVERY_METRICS)}")
    with workspace.lock:
        delivery = known_delivery(call, delivery_id)
        if metric == "unsubscribed":
            workspace.deliveries.unsubscribe(("delivery_id", delivery_id), delivery_id)
        else:
            when = whole_number(body.get("timestamp"), "timestamp")
            more = {name: body[name] for name in _TOLD_OF if name in body}
            if "link_id" in more:
                more["link_id"] = _known_link(delivery, body)
            reason = as_text(body.get("reason") or "")
            now = workspace.seconds() if when is None else when
            workspace.deliveries.book(delivery, metric, now, reason=reason, **more)
        return delivery_record(delivery)


def rendered_part(call: Call, delivery_id: str) -> Delivery:
    """A delivery that has been rendered. Raises ApiError 404."""
    delivery = known_delivery(call, delivery_id)
    if not delivery.rendered:
        raise ApiError(404, f"there is no rendered delivery '{delivery_id}'")
    return delivery


_HTML = (("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store"), *SANDBOXED)
_TEXT = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"), *SANDBOXED)


@route("GET", "/__parlel/deliveries/{delivery_id}/html", CONTROL)
def delivery_html(call: Call, delivery_id: str) -> Response:
    """The rendered HTML body of a delivery; with `tracked=false` nobody notices who reads it."""
    delivery = rendered_part(call, delivery_id)
    body = delivery.rendered.get("body", "")
    if call.request.query().get("tracked") == "false":
        body = untracked(delivery, body)
    return Response(200, body.encode("utf-8", "replace"), _HTML)


@route("GET", "/__parlel/deliveries/{delivery_id}/text", CONTROL)
def delivery_text(call: Call, delivery_id: str) -> Response:
    """The rendered plain text of a delivery."""
    rendered = as_seen(rendered_part(call, delivery_id))
    text = rendered.get("body_plain") or rendered.get("body", "")
    return Response(200, text.encode("utf-8", "replace"), _TEXT)


@route("GET", "/__parlel/deliveries/{delivery_id}/eml", CONTROL)
def delivery_eml(call: Call, delivery_id: str) -> Response:
    """The delivery as a mail program would get it."""
    from email.header import Header
    from email.mime.application import MIMEApplication
    from email.mime.multipart import MIMEMultipart
    from email.mime.text import MIMEText
    from email.utils import format_datetime

    delivery = rendered_part(call, delivery_id)
    # The older classes, because they take any text for an address, as a template may make one.
    rendered, mail, texts = as_seen(delivery), MIMEMultipart(), MIMEMultipart("alternative")
    names = {"Subject": "subject", "From": "from", "To": "to", "Cc": "cc", "Reply-To": "reply_to"}
    for name, part in names.items():
        text = re.sub(r"[\r\n]+", " ", rendered.get(part) or "")
        if text:
            mail[name] = Header(text, header_name=name).encode()
    for name, values in rendered.get("headers", {}).items():
        mail[name] = values[0]
    mail["Date"] = format_datetime(moment_of(math.floor(delivery.created)))
    mail["CIO-Delivery-ID"] = delivery.delivery_id
    texts.attach(MIMEText(rendered.get("body_plain") or "", "plain", "utf-8"))
    texts.attach(MIMEText(rendered.get("body", ""), "html", "utf-8"))
    mail.attach(texts)
    for name, content in (delivery.message.get("attachments") or {}).items():
        attached = MIMEApplication(base64.b64decode(content))
        attached.add_header("Content-Disposition", "attachment", filename=name)
        mail.attach(attached)
    return Response(200, mail.as_bytes(), (("Content-Type", "message/rfc822"), *SANDBOXED))


# ---- the links inside a message


@route("GET", "/e/c/{delivery_id}/{link}", TRACK_OPEN)
def follow_link(call: Call, delivery_id: str, link: str) -> Response:
    """Count a click and lead on to where the link pointed."""
    workspace = call.workspace
    with workspace.lock:
        delivery = workspace.deliveries.rows.get(delivery_id)
        links = delivery.tracked_links() if delivery else ()
        hrefs = {str(row["id"]): row["href"] for row in links}
        if delivery is None or link not in hrefs:
            raise ApiError(404, "this link is in no message")
        href = hrefs[link]
        workspace.deliveries.book(
            delivery, "clicked", workspace.seconds(), href=href, link_id=int(link)
        )
    return Response(302, b"", (("Location", quote(href, safe=_URL_SIGNS)),))


#: What stays as it is in a URL that is given on.
_URL_SIGNS = "%:/?#[]@!$&'()*+,;=~-._"
#: A transparent GIF of one pixel.
_PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


@route("GET", "/e/o/{delivery_id}", TRACK_OPEN)
def load_pixel(call: Call, delivery_id: str) -> Response:
    """Count an open."""
    workspace = call.workspace
    with workspace.lock:
        delivery = workspace.deliveries.rows.get(delivery_id)
        if delivery is not None:
            workspace.deliveries.report(delivery, "opened", workspace.seconds())
    return Response(200, _PIXEL, (("Content-Type", "image/gif"), ("Cache-Control", "no-store")))


@route("GET", "/e/v/{delivery_id}", TRACK_OPEN)
def view_in_browser(call: Call, delivery_id: str) -> Response:
    """Show a message in a browser."""
    return delivery_html(call, delivery_id)


@route("GET", "/unsubscribe/{delivery_id}", TRACK_OPEN)
def unsubscribe_by_link(call: Call, delivery_id: str) -> Response:
    """Unsubscribe whoever follows the link in a message."""
    workspace = call.workspace
    if delivery_id not in workspace.deliveries.rows:
        raise ApiError(404, "this link is in no message")
    with workspace.lock:
        workspace.deliveries.unsubscribe(("delivery_id", delivery_id), delivery_id)
    return Response(200, b"<!doctype html><p>You have been unsubscribed.</p>\n", _HTML)


# ---- faults


_COUNT = number_field(1, 10**9, int)
_SECONDS = number_field(0, 3600, int, float)
_SWITCH = must_be("true", lambda value: value is True)
#: What a rule can match, each by an example.
FAULT_MATCHES = {
    "operation": "POST /v1/send/email",
    "method": "POST",
    "path": "/api/v1/customers/*",
    "person": "ada@example.com",
    "event": "signup",
    "workspace": "worker-1",
}
_MATCH = object_field(CLOSED.having(short=" ".join(FAULT_MATCHES)))
#: What a rule may have, and an example of it.
_FAULT: Dict[str, Tuple[Check, Json]] = {
    "match": (_MATCH, {"operation": "POST /v1/send/email"}),
    "times": (_COUNT, 2), "every": (_COUNT, 3), "after": (number_field(0, 10**9, int), 1),
    "probability": (number_field(0, 1, int, float), 0.5), "seed": (number_field(0, 10**15, int), 7),
    "when": (choice_field("before", "after"), "after"),
    "status": (number_field(200, 599, int), 503),
    "body": (ANYTHING, {"meta": {"error": "down for maintenance"}}),
    "retry_after": (typed_field(int, float, str), 1),
    "latency": (_SECONDS, 0.5), "jitter": (_SECONDS, 0.1),
    "reset": (_SWITCH, True), "empty": (_SWITCH, True), "hang": (_SWITCH, True),
    "truncate": (number_field(0, 10**9, int), 10),
    "trickle": (number_field(1, 10**9, int, float), 100),
}  # fmt: skip
_FAULT_NEEDS = {"body": "status", "retry_after": "status", "jitter": "latency"}


def _fault_example(name: str) -> Json:
    """A rule that shows how a field is meant."""
    outer, _, inner = name.partition(".")
    rule: Json = {} if outer in (*EFFECTS, "responses") else {"status": 503}
    for part in (_FAULT_NEEDS.get(outer), outer):
        rule.update({part: _FAULT[part][1]} if part in _FAULT else {})
    return {**rule, "match": {inner: FAULT_MATCHES[inner]}} if inner in FAULT_MATCHES else rule


#: What each of the responses of a rule may say for itself.
_STROKE = FieldList(
    {
        name: _FAULT[name][0]
        for name in ("when", "body", "retry_after", "latency", "jitter", *EFFECTS)
    },
    closed=True,
)
_FAULT["responses"] = (
    list_field(object_field(_STROKE), 1, 1000),
    [{"status": 503}, {"reset": True}],
)
FAULT_FIELDS = FieldList(
    {name: check for name, (check, _) in _FAULT.items()}, closed=True, example=_fault_example
)


def add_fault(faults: Faults, body: Json) -> Fault:
    """Let something go wrong from now on. Raises ApiError 400."""
    when = "after" if "truncate" in body or "trickle" in body else "before"
    rule = {"match": {}, "when": when, **body}
    check_fault(rule)
    return faults.add(rule, _operations_of(rule["match"]))


def check_fault(rule: Json) -> None:
    """Raises ApiError 400 naming what is wrong with a rule of what goes wrong."""
    FAULT_FIELDS.read(rule)
    for i, one in enumerate(rule.get("responses", ())):
        if "times" in rule or any(name in rule for name in EFFECTS):
            raise invalid(
                "responses say what goes wrong and how often; leave the rest out", "responses"
            )
        _check_stroke({**one, "when": one.get("when", rule["when"])}, f"responses[{i}].")
    if "responses" not in rule:
        _check_stroke(rule)


def _check_stroke(rule: Json, where: str = "") -> None:
    effects = [name for name in EFFECTS if name in rule]
    if len(effects) != 1 and (effects or "latency" not in rule):
        others = ", ".join(EFFECTS[1:])
        text = f"{where}status or exactly one other effect is needed: {others} or latency"
        raise invalid(text, f"{where}status")
    if rule["when"] == "before" and effects and effects[0] in ("truncate", "trickle"):
        text = f"{where}when must be after: {effects[0]} takes the answer to what was done"
        raise invalid(text, f"{where}when")
    for name, needed in _FAULT_NEEDS.items():
        if name in rule and needed not in rule:
            raise invalid(f"{where}{name} goes with {needed}", where + name)


def _operations_of(match: Json) -> FrozenSet[str]:
    """The operations that a rule is about: one, those that begin so, or that fit a pattern."""
    from fnmatch import fnmatchcase

    wanted, method = match.get("operation", ""), match.get("method", "").upper()
    rows = [row for row in ROUTES if row.api.name not in ("shared", "control")]
    labels = [f"{row.method} {row.path}" for row in rows if method in ("", row.method)]
    found = [label for label in labels if label == wanted]
    found = found or [label for label in labels if label.startswith(wanted)]
    found = found or [label for label in labels if fnmatchcase(label, wanted)]
    if not found:
        near = spelt_alike(wanted, labels, 3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        field = "match.operation" if labels else "match.method"
        raise invalid(f"{field} fits none of the operations{hint}", field)
    return frozenset(found)


@route("GET", "/__parlel/faults", CONTROL)
def list_faults(call: Call) -> Json:
    """List the rules of what goes wrong, with how often each matched and fired."""
    rows = call.fake.faults.records()
    return {"faults": rows, "count": len(rows)}


@route("POST", "/__parlel/faults", CONTROL, fields=FAULT_FIELDS)
def create_fault(call: Call) -> Json:
    """Let requests go wrong that match a rule, here or in the workspace that the rule names."""
    body, fake = call.body(), call.fake
    match = body.get("match")
    name = match.get("workspace") if isinstance(match, dict) else None
    if isinstance(name, str):
        try:
            fake = fake.root.named(name)
        except ApiError as error:
            text = f"match.workspace is unknown: {error.message}"
            raise invalid(text, "match.workspace") from None
    return add_fault(fake.faults, body).record()


@route("DELETE", "/__parlel/faults", CONTROL)
def delete_faults(call: Call) -> Json:
    """Let nothing go wrong any more."""
    return {"removed": len(call.fake.faults.remove())}


@route("DELETE", "/__parlel/faults/{id}", CONTROL)
def delete_fault(call: Call, id: str) -> Json:
    """Take one rule away; shows how often it matched and fired."""
    gone = call.fake.faults.remove(id)
    if not gone:
        raise ApiError(404, f"there is no fault '{id}'")
    return gone[0].record()


# ---- the clock


def clock_document(call: Call) -> Json:
    """What the clock shows, Unix seconds."""
    clock = call.workspace.clock
    due = clock.pending
    when = {"due": len(due), "next": due[0][0] if due else None}
    return {"now": clock.now(), "frozen": clock.frozen, **when}


@route("POST", "/__parlel/webhooks/flush", CONTROL, True, NO_FIELDS)
def flush_webhooks(call: Call) -> Json:
    """Wait until every reporting webhook is sent that can be sent now."""
    return {"pending": call.fake.outbox.flush()}


@route("GET", "/__parlel/clock", CONTROL)
def read_clock(call: Call) -> Json:
    """Read the clock."""
    return clock_document(call)


#: What can be done to the clock; times are Unix seconds, or seconds.
CLOCK_FIELDS = FieldList(
    closed=True, some=True, example={"freeze": True, "advance": 60}
).having(
    flag="freeze",
    **dict.fromkeys(("now", "advance"), number_field(0, MAX_SETTING * 4, int, float)),
)  # fmt: skip


@route("PUT", "/__parlel/clock", CONTROL, heavy=True, fields=CLOCK_FIELDS)
def set_clock(call: Call) -> Json:
    """Freeze the clock, let it go, set it or advance it; what becomes due is done first."""
    waiting = set_clock_to(call.fake, **call.fields())
    return {**clock_document(call), **({"waiting": waiting} if waiting else {})}


#: How long one call waits for the endpoints of webhooks, all in all, in seconds.
CLOCK_PATIENCE = 10.0


def set_clock_to(
    fake: Fake,
    freeze: Optional[bool] = None,
    now: Optional[float] = None,
    advance: float = 0,
) -> str:
    """Change the clock; what becomes due is done, in order, webhooks included.

    The clock arrives also if an endpoint is slow; then this tells what has not been sent by now.
    """
    workspace, clock, left = fake.workspace, fake.workspace.clock, 0
    end = time.monotonic() + CLOCK_PATIENCE
    if (clock.now() if now is None else now) + advance > LAST_MOMENT:
        name = "advance" if advance else "now"
        raise invalid(f"{name} must not lead beyond the begin of the year 9999", name)

    def settle() -> None:
        nonlocal left
        left = fake.outbox.flush(max(0, end - time.monotonic()))

    with fake.turning:
        if clock.frozen:  # so that what is under way comes back in its own time
            fake.outbox.flush(1)
        if freeze:
            clock.freeze()
        # Without the workspace's lock, which who sends webhooks needs to plan the next try.
        if now is not None:
            workspace.agenda.advance(max(0, now - clock.now()), settle)
            clock.move_to(now, clock.frozen)
        if advance:
            workspace.agenda.advance(advance, settle)
        if freeze is False:
            clock.resume()
    if time.monotonic() < end or not left:
        return ""
    text = f"{left} reports wait for a slow endpoint; see GET /__parlel/webhooks"
    log.warning("the clock went ahead: %s", text)
    return text


@route("GET", "/__parlel/ca.pem", CONTROL)
def ca_pem(call: Call) -> Response:
    """The certificate to trust for https on this port."""
    settings = call.fake.settings
    pem = BUILT_IN_CA.encode()
    if settings.cert:
        with open(settings.cert, "rb") as file:
            pem = file.read()
    return Response(200, pem, (("Content-Type", "application/x-pem-file"),))


# ======================================================================================
# ==== §24 Snapshots
# ======================================================================================

#: The layout of a snapshot; a later one gets another number.
SNAPSHOT_FORMAT = 3
#: What is stored may be nested as deep as a request, and lies a few levels inside.
SNAPSHOT_DEPTH = MAX_DEPTH + 20
#: Settings without which a snapshot would mean something else.
_SNAPSHOT_SETTINGS = ("identifiers", "phone")
#: What is written once, in a list of its kind, and named elsewhere by its place there, because
#: several others point at it.
_LISTS: Dict[type, str] = {
    Person: "people",
    Device: "devices",
    Event: "events",
    Delivery: "deliveries",
    Journey: "journeys",
    Thing: "objects",
    Segment: "segments",
    Report: "reports",
    Fault: "faults",
}
#: What is made anew from the rest.
_UNWRITTEN = {
    Segment: {"predicate"},
    Delivery: {"seen"},
    Request: {"awaited", "read", "until"},
    Response: {"later"},
}


#: What only says by `kept` what is to be written.
_KEEPING = {Workspace, *PARTS.values()}


class Ledger:
    """Everything in a snapshot that others point at, by kind and place."""

    def __init__(self) -> None:
        self.things: Dict[type, List[Any]] = {kind: [] for kind in _LISTS}
        self._places: Dict[int, int] = {}

    def place(self, thing: Any) -> int:
        """Where a thing stands in the list of its kind; at the end if it is new there."""
        place = self._places.get(id(thing))
        if place is None:
            things = self.things[type(thing)]
            place = self._places[id(thing)] = len(things)
            things.append(thing)
        return place


class Codec(NamedTuple):
    """How a value of one type becomes JSON, and is made from it again.

    `write` takes the value and the ledger; `read` takes the JSON, the ledger, and where in the
    snapshot it stands, and raises ApiError 400 naming that.
    """

    write: Callable[[Any, Ledger], Json]
    read: Callable[[Json, Ledger, str], Any]


def _misfit(where: str, wanted: str, value: Json) -> ApiError:
    return invalid(f"{where} must be {wanted}, not {kind_of(value)}", where)


def _scalar(wanted: str, *kinds: type) -> Codec:
    def read(value: Json, ledger: Ledger, where: str) -> Any:
        if type(value) not in kinds:
            raise _misfit(where, wanted, value)
        return value

    return Codec(lambda value, ledger: value, read)


def _write_bytes(value: bytes, ledger: Ledger) -> Json:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _read_bytes(value: Json, ledger: Ledger, where: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    try:
        return base64.b64decode(value["base64"], validate=True)
    except (TypeError, KeyError, ValueError):
        raise _misfit(where, "a string, or an object with base64,", value) from None


def _read_listed(kind: type) -> Callable[[Json, Ledger, str], Any]:
    def read(value: Json, ledger: Ledger, where: str) -> Any:
        things = ledger.things[kind]
        if type(value) is not int or not 0 <= value < len(things):
            text = f"{where} must be a place in {_LISTS[kind]}, from 0 to {len(things) - 1}"
            raise invalid(f"{text}, not {value!r:.40}", where)
        return things[value]

    return read


def _optional(*kinds: Any) -> Codec:
    (inner,) = [codec_of(kind) for kind in kinds if kind is not type(None)]
    return Codec(
        lambda value, ledger: None if value is None else inner.write(value, ledger),
        lambda value, ledger, where: None if value is None else inner.read(value, ledger, where),
    )


def _rows(value: Json, where: str, length: Optional[int] = None) -> List[Json]:
    if not isinstance(value, list):
        raise _misfit(where, "a list", value)
    if length is not None and len(value) != length:
        raise invalid(f"{where} must have {length} parts, not {len(value)}", where)
    return value


def _list_codec(make: Callable[[Iterable[Any]], Any], part: Codec) -> Codec:
    """For lists and the like, all of whose parts are alike."""

    def write(value: Any, ledger: Ledger) -> Json:
        # A copy, because the journal and the outbox go on without the workspace's lock.
        rows = sorted(value) if isinstance(value, (set, frozenset)) else list(value)
        return [part.write(row, ledger) for row in rows]

    def read(value: Json, ledger: Ledger, where: str) -> Any:
        rows = enumerate(_rows(value, where))
        return make([part.read(row, ledger, f"{where}[{i}]") for i, row in rows])

    return Codec(write, read)


def _series(make: Callable[[Iterable[Any]], Any]) -> Callable[[Any], Codec]:
    return lambda kind: _list_codec(make, codec_of(kind))


def _tuple(*kinds: Any) -> Codec:
    if len(kinds) == 2 and kinds[1] is ...:
        return _list_codec(tuple, codec_of(kinds[0]))
    parts = [codec_of(kind) for kind in kinds]

    def read(value: Json, ledger: Ledger, where: str) -> Any:
        pairs = enumerate(zip(parts, _rows(value, where, len(parts))))
        return tuple([part.read(row, ledger, f"{where}[{i}]") for i, (part, row) in pairs])

    return Codec(
        lambda value, ledger: [part.write(row, ledger) for part, row in zip(parts, value)], read
    )


def _mapping(key: Any, kind: Any) -> Codec:
    """An object, or pairs where the keys are no strings."""
    part = codec_of(kind)
    if key is not str:
        pairs = _list_codec(dict, _tuple(key, kind))
        return Codec(lambda value, ledger: pairs.write(value.items(), ledger), pairs.read)

    def read(value: Json, ledger: Ledger, where: str) -> Any:
        if not isinstance(value, dict):
            raise _misfit(where, "an object", value)
        return {k: part.read(v, ledger, f"{where}.{k}") for k, v in value.items()}

    return Codec(lambda value, ledger: {k: part.write(v, ledger) for k, v in value.items()}, read)


def _annotated(kind: Any, check: Check) -> Codec:
    """For a value that is more than its type says: see `stored` and Moment."""
    part = codec_of(kind)

    def read(value: Json, ledger: Ledger, where: str) -> Any:
        result = part.read(value, ledger, where)
        place, wrong = _placed(where, check.wrong(result))
        if wrong:
            raise invalid(f"{place} {wrong}", place)
        return result

    return Codec(part.write, read)


@functools.cache
def _parts_of(kind: Any) -> Dict[str, Codec]:
    """The codec of each field of a class, by the types that it declares."""
    from typing import get_type_hints

    unwritten = _UNWRITTEN.get(kind, set())
    hints = get_type_hints(kind, include_extras=True)
    # A part of a workspace says which of its fields are kept; the others lead to its neighbours.
    own = (
        {part.name for part in fields(kind) if "kept" in part.metadata}
        if kind in _KEEPING
        else hints
    )
    return {name: codec_of(hints[name]) for name in hints if name in own and name not in unwritten}


def _write_fields(value: Any, ledger: Ledger) -> Json:
    parts = _parts_of(cast(Any, type(value)))
    return {name: part.write(getattr(value, name), ledger) for name, part in parts.items()}


def _read_fields(kind: type, value: Json, ledger: Ledger, where: str) -> Dict[str, Any]:
    parts = _parts_of(kind)
    _check_keys(value, parts, where)
    return {name: part.read(value[name], ledger, f"{where}.{name}") for name, part in parts.items()}


def _check_keys(value: Json, names: Iterable[str], where: str) -> None:
    if not isinstance(value, dict):
        raise _misfit(where, "an object", value)
    for name in sorted({*names}.symmetric_difference(value)):
        problem = "is unknown" if name in value else "is missing"
        raise invalid(f"{where}.{name} {problem}", f"{where}.{name}")


def _blank(kind: Any) -> Any:
    return _set_fields(kind.__new__(kind), dict.fromkeys(_UNWRITTEN.get(kind, ())))


def _set_fields(thing: Any, values: Dict[str, Any]) -> Any:
    for name, value in values.items():
        setattr(thing, name, value)
    return thing


def _record_codec(kind: type) -> Codec:
    def read(value: Json, ledger: Ledger, where: str) -> Any:
        values = _read_fields(kind, value, ledger, where)
        return kind(**values) if issubclass(kind, tuple) else _set_fields(_blank(kind), values)

    return Codec(_write_fields, read)


def _named(what: str, known: Callable[[], Dict[str, Any]], name: Callable[[Any], str]) -> Codec:
    """For what exists once, in the code: it is written by name."""

    def read(value: Json, ledger: Ledger, where: str) -> Any:
        if not isinstance(value, str) or value not in known():
            raise invalid(f"{where} must be the name of {what}, not {value!r:.60}", where)
        return known()[value]

    return Codec(lambda value, ledger: name(value), read)


def _read_belongings(value: Json, ledger: Ledger, where: str) -> Belongings:
    return _NOTHING if value is None else _record_codec(Belongings).read(value, ledger, where)


def _write_people(people: People, ledger: Ledger) -> Json:
    count = len(people) + people.gone
    return [None if (p := people.at(i)) is None else ledger.place(p) for i in range(count)]


def _write_request(request: Request, ledger: Ledger) -> Json:
    """A request without its secrets: snapshots end up in files."""
    headers = {name: masked(name, value) for name, value in request.headers.items()}
    row, plain = {**_write_fields(request, ledger), "headers": headers}, request.plain()
    body = unsecret(plain)
    if body != plain:
        row.update(body=_write_bytes(body, ledger), headers=without(headers, ("content-encoding",)))
    return row


def _write_response(response: Response, ledger: Ledger) -> Json:
    return {
        **_write_fields(response, ledger),
        "body": _write_bytes(unsecret(response.body), ledger),
    }


#: The codecs of types that need one of their own; all others follow from what they are made of.
_CODECS: Dict[Any, Codec] = {
    Any: Codec(lambda value, ledger: value, lambda value, ledger, where: value),
    str: _scalar("a string", str),
    int: _scalar("a whole number", int),
    float: _scalar("a number", float, int),
    bool: _scalar("true or false", bool),
    bytes: Codec(_write_bytes, _read_bytes),
    Belongings: Codec(
        lambda value, ledger: None if value is _NOTHING else _write_fields(value, ledger),
        _read_belongings,
    ),
    # The data of an activity, which is made when it is asked for.
    Callable[[], Any]: Codec(
        lambda value, ledger: value(), lambda value, ledger, where: lambda: value
    ),
    Request: Codec(_write_request, _record_codec(Request).read),
    Response: Codec(_write_response, _record_codec(Response).read),
    Family: _named("a family", lambda: FAMILIES, lambda family: family.kind),
    Operation: _named(
        "an operation",
        lambda: {f"{row.method} {row.path}": row for row in ROUTES},
        lambda row: f"{row.method} {row.path}",
    ),
    **{
        kind: Codec(lambda value, ledger: ledger.place(value), _read_listed(kind))
        for kind in _LISTS
    },
}
_MAKERS: Dict[Any, Callable[..., Codec]] = {
    list: _series(list),
    deque: _series(deque),
    set: _series(set),
    frozenset: _series(frozenset),
    collections.abc.Sequence: _series(tuple),
    tuple: _tuple,
    dict: _mapping,
    collections.abc.Mapping: _mapping,
    Union: _optional,
    Annotated: _annotated,
}


@functools.cache
def codec_of(hint: Any) -> Codec:
    """How values of a declared type are written and read."""
    from typing import get_args, get_origin

    if hint in _CODECS:
        return _CODECS[hint]
    make = _MAKERS.get(get_origin(hint))
    return make(*get_args(hint)) if make else _record_codec(hint)


# ---- work that waits

# Thousands of writes may wait, and finding out about a function takes longer than writing one.
_signature_of = functools.cache(inspect.signature)


@functools.cache
def _chores() -> Dict[str, Callable[..., Any]]:
    """Whatever may wait for its time: a chore, or a write that is put off."""
    return {**CHORES, **{name: verb for name, (_, verb) in verbs().items()}}


@functools.cache
def _argument_codecs(function: Callable[..., Any]) -> Dict[str, Codec]:
    from typing import get_type_hints

    hints = get_type_hints(function)
    return {name: codec_of(hints[name]) for name in list(_signature_of(function).parameters)[1:]}


def _write_chore(when: float, chore: Chore, ledger: Ledger) -> Json:
    """`{at, do, with}`; a Track write that is put off goes by the name of its verb."""
    name, args = chore
    if name == apply_late.__name__:
        name, args = args[0], (args[1], *args[2])
    function = _chores()[name]
    given = list(_signature_of(function).bind(None, *args).arguments.items())[1:]
    codecs = _argument_codecs(function)
    arguments = {name: codecs[name].write(value, ledger) for name, value in given}
    return {"at": when, "do": name, "with": arguments}


def _read_chore(value: Json, ledger: Ledger, where: str) -> Tuple[float, Chore]:
    _check_keys(value, ("at", "do", "with"), where)
    when = codec_of(float).read(value["at"], ledger, f"{where}.at")
    function = _named("something to do", _chores, str).read(value["do"], ledger, f"{where}.do")
    given, codecs = value["with"], _argument_codecs(function)
    try:
        _signature_of(function).bind(None, **given)
    except TypeError as error:
        raise invalid(
            f"{where}.with does not fit {value['do']}: {error}", f"{where}.with"
        ) from None
    _check_keys({**dict.fromkeys(codecs), **given}, codecs, f"{where}.with")
    names = [name for name in codecs if name in given]
    args = {k: codecs[k].read(given[k], ledger, f"{where}.with.{k}") for k in names}
    bound = _signature_of(function).bind(None, **args)
    bound.apply_defaults()
    if value["do"] not in verbs():
        return when, Chore(value["do"], bound.args[1:])
    return when, Chore(apply_late.__name__, (value["do"], bound.args[1], bound.args[2:]))


# ---- the whole


def snapshot(fake: Fake) -> bytes:
    """A workspace as one JSON document, with everything in it that `restored` needs.

    What is being sent in the background is sent before.
    """
    agenda = fake.workspace.agenda
    for job in list(agenda.jobs):
        job.join()
    agenda.tick()
    with agenda.turn, fake.workspace.lock:
        document = _document(fake)
    return compact_line(document)


def _document(fake: Fake) -> Json:
    ledger, workspace = Ledger(), fake.workspace
    reports_of(workspace)  # of all that was only noted
    settings = {name: getattr(fake.settings, name) for name in _SNAPSHOT_SETTINGS}
    everybody = _write_people(workspace.people, ledger)  # first, so that they keep their order
    parts = {name: _write_fields(part, ledger) for name, part in workspace.parts.items()}
    document: Json = {
        "customerio_fake": {"format": SNAPSHOT_FORMAT, "version": __version__, **settings},
        "clock": _write_clock(workspace.clock, ledger),
        "journal": _write_fields(fake.journal, ledger),
        "rules": _write_fields(fake.faults, ledger),
        "everybody": everybody,
        "workspace": {**parts, **_write_fields(workspace, ledger)},
    }
    hooks = document["workspace"]["shelves"]["reporting_webhooks"]
    for _, row in hooks["rows"]:  # fresh ones
        row["endpoint"] = unsecret(row["endpoint"].encode()).decode()
    rows: Dict[type, List[Json]] = {kind: [] for kind in _LISTS}
    # Writing a thing may bring up others.
    while any(len(rows[kind]) < len(things) for kind, things in ledger.things.items()):
        for kind, things in ledger.things.items():
            rows[kind] += [_write_fields(thing, ledger) for thing in things[len(rows[kind]) :]]
    return {**document, **{_LISTS[kind]: rows[kind] for kind in _LISTS}}


def _write_clock(clock: Clock, ledger: Ledger) -> Json:
    due = [_write_chore(when, chore, ledger) for when, chore in clock.pending]
    return {"now": clock.now(), "real": time.time(), "frozen": clock.frozen, "due": due}


class State(NamedTuple):
    """What a snapshot holds."""

    workspace: Workspace
    journal: Journal
    faults: Faults


def restored(document: Json, settings: Settings) -> State:
    """What a snapshot describes. Raises ApiError 400 naming what is wrong with it."""
    parts = ("customerio_fake", "clock", "journal", "rules", "everybody", "workspace")
    _check_keys(document, [*parts, *_LISTS.values()], "state")
    _check_head(document["customerio_fake"], settings)
    try:
        state = State(Workspace(settings), Journal(settings.journal), Faults())
        _read_all(document, state)
    except ApiError:
        raise
    except Exception as error:
        raise invalid(f"this snapshot does not fit together: {error!r:.200}") from None
    return state


def put_in(fake: Fake, state: State) -> None:
    """Let a fake go on from what a snapshot holds."""
    fake.journal, fake.faults = state.journal, state.faults
    fake.put_in(state.workspace)


def _read_all(document: Json, state: State) -> None:
    ledger, workspace = Ledger(), state.workspace
    for kind, name in _LISTS.items():
        ledger.things[kind] = [_blank(kind) for _ in _rows(document[name], name)]
    for kind, name in _LISTS.items():
        for i, (thing, row) in enumerate(zip(ledger.things[kind], document[name])):
            _set_fields(thing, _read_fields(kind, row, ledger, f"{name}[{i}]"))
    everybody = codec_of(List[Optional[Person]]).read(document["everybody"], ledger, "everybody")
    workspace.people.fill(everybody)
    _fill(state.journal, document["journal"], ledger, "journal")
    _fill(state.faults, document["rules"], ledger, "rules")
    state.faults.rearm()
    _read_workspace(workspace, document["workspace"], ledger)
    _read_clock(workspace.clock, document["clock"], ledger)
    attach(workspace, restored=True)
    call_once_more(workspace)
    _check_sound(state)


def _fill(part: Any, document: Json, ledger: Ledger, where: str) -> None:
    """Put into a part of a workspace what a snapshot has of it."""
    for name, value in _read_fields(type(part), document, ledger, where).items():
        mine = getattr(part, name)
        if isinstance(mine, deque):  # which has a limit of its own
            mine.extend(value)
        else:
            setattr(part, name, value)


def _check_head(head: Json, settings: Settings) -> None:
    where = "customerio_fake"
    _check_keys(head, ("format", "version", *_SNAPSHOT_SETTINGS), where)
    if head["format"] != SNAPSHOT_FORMAT:
        text = f"this snapshot has format {head['format']!r:.20}; version {__version__} reads"
        raise invalid(f"{text} {SNAPSHOT_FORMAT}", f"{where}.format")
    for name in _SNAPSHOT_SETTINGS:
        mine = getattr(settings, name)
        if head[name] != mine:
            text = f"this snapshot was made with {name} {head[name]!r:.20}, here it is {mine!r}"
            raise invalid(text, f"{where}.{name}")


def _read_workspace(workspace: Workspace, document: Json, ledger: Ledger) -> None:
    parts = workspace.parts
    _check_keys(document, (*parts, *_parts_of(Workspace)), "workspace")
    _check_keys(document["shelves"], SHELVES, "workspace.shelves")
    for name, part in parts.items():
        _fill(part, document[name], ledger, f"workspace.{name}")
    own = {name: value for name, value in document.items() if name not in parts}
    _fill(workspace, own, ledger, "workspace")
    for segment in workspace.segments.rows.values():
        if segment.conditions:
            where = f"segments[{segment.number}]"
            segment.predicate = workspace.segments.compile(segment.conditions, where)


def _read_clock(clock: Clock, document: Json, ledger: Ledger) -> None:
    """Time goes on while a workspace is in a snapshot, unless its clock stands."""
    _check_keys(document, ("now", "real", "frozen", "due"), "clock")
    instant, where = codec_of(Instant).read, "clock"
    now, real = (instant(document[name], ledger, f"{where}.{name}") for name in ("now", "real"))
    frozen = codec_of(bool).read(document["frozen"], ledger, f"{where}.frozen")
    going = instant(now + max(0, time.time() - real), ledger, f"{where}.now, gone on till today,")
    clock.move_to(now if frozen else going, frozen)
    for i, row in enumerate(_rows(document["due"], f"{where}.due")):
        clock.at(*_read_chore(row, ledger, f"{where}.due[{i}]"))


def _owned(workspace: Workspace) -> Iterator[Tuple[str, Owners, Owners]]:
    """What people have, and what the parts of the workspace say that they have."""
    for name, part in OWNED.items():
        mine = {
            (person.serial, _key_of(thing))
            for person in workspace.people
            for thing in getattr(person.has, name)
        }
        yield name, mine, getattr(workspace, part).owners(name)


def _key_of(thing: Any) -> Any:
    """What `owners` calls a thing: its key, or else itself."""
    if isinstance(thing, Delivery):
        return thing.delivery_id
    return id(thing) if isinstance(thing, (Event, Journey)) else thing


def _check_sound(state: State) -> None:
    """Look at everything once, so that no later call stumbles over what does not fit together."""
    workspace = state.workspace
    for name, mine, theirs in _owned(workspace):
        for serial, key in mine ^ theirs:
            where = f"people[{serial}].has.{name}"
            side = "the workspace does not" if (serial, key) in mine else "only the workspace does"
            raise invalid(f"{where} has {key!r}, {side}", where)
    _check_keyed(state)
    _check_stamped(workspace)
    for name, shelf in workspace.shelves.items():
        _check_shelf(name, shelf, f"workspace.shelves.{name}")
    for fault in state.faults.rows.values():
        try:
            check_fault(fault.rule)
        except ApiError as error:
            raise invalid(f"rules.rows: {error.message}", "rules.rows") from None
    for id, delivery in workspace.deliveries.rows.items():
        if "created" not in delivery.metrics:
            raise invalid(f"deliveries: {id} has no metric 'created'", "deliveries")
    for collection in COLLECTIONS.values():
        deque(collection.records(state), maxlen=0)


def _check_stamped(workspace: Workspace) -> None:
    for person in workspace.people:
        for name in {*person.attributes, *(["phone"] if person.phone else [])} - {
            *person.timestamps
        }:
            where = f"people[{person.serial}].timestamps.{name}"
            raise invalid(f"{where} is missing", where)


def _check_keyed(state: State) -> None:
    """What is filed under its own name has to have that name."""
    workspace = state.workspace
    filed: Dict[str, Tuple[Dict[Any, Any], str]] = {
        "devices": (workspace.devices.rows, "token"),
        "objects": (workspace.objects.rows, "key"),
        "segments": (workspace.segments.rows, "number"),
        "deliveries": (workspace.deliveries.rows, "delivery_id"),
        "exports": (workspace.exports, "number"),
        "rules": (state.faults.rows, "id"),
    }
    for where, (rows, name) in filed.items():
        for key, thing in rows.items():
            if getattr(thing, name) != key:
                text = (
                    f"{where}: what is filed under {key!r} has the {name} {getattr(thing, name)!r}"
                )
                raise invalid(text, where)


def _check_shelf(name: str, shelf: Shelf, where: str) -> None:
    if shelf.kind != name:
        raise invalid(f"{where}.kind must be {name}", f"{where}.kind")
    for i, (key, row) in enumerate(shelf.rows.items()):
        for problem in SHELVES[name].problems(row, f"{where}.rows[{i}][1]."):
            raise ApiError(400, problem)
        if row.get("id", key) != key:
            at = f"{where}.rows[{i}][1].id"
            raise invalid(f"{at} must be {key!r}, as it is filed", at)
    parents = {key: row.get("parent_folder_id") for key, row in shelf.rows.items()}
    for key in parents if name in ("asset_folders", "ds_folders") else ():
        line = [key]
        while parents.get(line[-1]) is not None:
            line.append(parents[line[-1]])
            if line[-1] in line[:-1] or line[-1] not in parents:
                raise invalid(f"{where}: the folder {key!r} lies in no folder", where)


def as_json(value: Json) -> Json:
    """What a value of Python is in JSON. Raises ApiError 400 for one that it does not have."""
    try:
        return decode_json(json.dumps(value).encode(), bounded=False)
    except (TypeError, ValueError) as error:
        raise invalid(f"this is not JSON: {error}") from None


def read_json(path: str) -> Json:
    """The JSON document in a file. Raises ValueError or OSError."""
    try:
        with open(path, "rb") as file:
            return decode_json(file.read(), SNAPSHOT_DEPTH, bounded=False)
    except OSError as error:
        raise OSError(error.errno, f"can't read {path}: {error.strerror}") from None
    except ApiError as error:
        raise ValueError(f"{path}: {error.message}") from None


def load(fake: Fake, path: str) -> None:
    """Go on from the snapshot in a file, if there is one. Raises ValueError.

    Also if it could not be saved there later, so that nobody learns that at the end.
    """
    folder, name = os.path.split(os.path.realpath(path))
    if not os.access(folder, os.W_OK):
        problem = "no leave to write into" if os.path.isdir(folder) else "there is no folder"
        raise ValueError(f"state can't be saved to {path}: {problem} {folder}")
    _clear_up(folder, name)
    if os.path.exists(path):
        try:
            put_in(fake, restored(read_json(path), fake.settings))
        except (ApiError, ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            text = f"can't go on from the state in {path}: {reason}"
            raise ValueError(f"{text}; mend the file, or move it away to start afresh") from None


def save(fake: Fake, path: str) -> None:
    """Write a snapshot into a file, whole or not at all, for its owner alone. Raises OSError."""
    import tempfile

    document = snapshot(fake)
    folder, name = os.path.split(os.path.realpath(path))
    try:
        _clear_up(folder, name)
        # A name of its own, because another server may save there, too.
        number, fresh = tempfile.mkstemp(_UNSAVED, f"{name}.", folder)
        try:
            with open(number, "wb") as file:
                file.write(document)
            os.replace(fresh, os.path.join(folder, name))
        except BaseException:
            os.unlink(fresh)
            raise
    except OSError as error:
        text = f"can't save the state to {path}: {error.strerror}; what was there before still is"
        raise OSError(error.errno, text) from None


#: How the file ends into which a snapshot is written before it gets its name, and for how many
#: seconds nothing is written to it once whoever did has been killed.
_UNSAVED, _ABANDONED = ".unsaved", 60


def _clear_up(folder: str, name: str) -> None:
    """Remove what saves that were killed have left."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:  # another server may clear up, too
            unsaved = entry.name.startswith(f"{name}.") and entry.name.endswith(_UNSAVED)
            if unsaved and time.time() - entry.stat().st_mtime > _ABANDONED:
                os.unlink(entry.path)


@route("GET", "/__parlel/state", CONTROL, heavy=True)
def get_state(call: Call) -> Response:
    """Give the whole workspace as one JSON document, for `PUT /__parlel/state`."""
    return Response(200, snapshot(call.fake), CONTROL.headers)


@route("PUT", "/__parlel/state", CONTROL, True, FieldList(free="a snapshot"))
def put_state(call: Call) -> Json:
    """Make the workspace what a snapshot says, counters included; or nothing, with the reason."""
    put_in(call.fake, restored(call.json(SNAPSHOT_DEPTH), call.fake.settings))
    return {"status": "ok"}


# ======================================================================================
# ==== §25 JavaScript
# ======================================================================================

#: The client, as `python customerio_fake.py client` prints it.
JS_CLIENT = r"""// Drives customerio_fake, a local Customer.io for tests, from Node 20 or newer,
// or a browser's test runner. Made by `python customerio_fake.py client`; needs nothing else.

/** What the fake said: an assertion that failed, or a call that it refused (`status` tells). */
export class CustomerioFakeError extends Error {
  constructor(message, status, trace) {
    super(message);
    this.name = status === 422 ? "AssertionError" : "CustomerioFakeError";
    this.status = status;
    // Where the test asked, not where the answer came.
    if (trace) this.stack = trace.stack.replace(/^[^\n]*/, () => `${this.name}: ${message}`);
  }
}

const DISPOSE = Symbol.asyncDispose ?? Symbol("asyncDispose");

/** Where we were called, without our own frames. */
function traceOf(frames) {
  const trace = new Error();
  Error.captureStackTrace?.(trace, frames);
  return trace;
}

const AMOUNTS = ["exactly", "at_least", "at_most", "none", "in_order", "timeout"];
const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** Splits `{ name: "signup", timeout: 5 }` into what is matched and how many, and for how long. */
function expectation(match = {}) {
  const body = { match: {} };
  for (const [name, value] of Object.entries(match)) {
    if (AMOUNTS.includes(snake(name))) body[snake(name)] = value;
    else body.match[name] = value;
  }
  return body;
}

/** One world of people, events and messages, which only calls with its keys can see. */
export class Workspace {
  #path;
  constructor(url, record = {}) {
    this.url = url;
    this.name = record.name ?? "";
    this.#path = record.path ?? "";
    this.siteId = record.site_id || "fake-site-id";
    this.apiKey = record.api_key || "fake-api-key";
    this.appKey = record.app_key || "fake-app-key";
    this.writeKey = record.write_key || "fake-write-key";
    this.signingKey = record.signing_key || "fake-signing-key";
    /** Time, as the fake sees it: Unix seconds. */
    this.clock = {
      now: async () => (await this.call("GET", "clock")).now,
      freeze: async (at) => this.call("PUT", "clock", { freeze: true, ...(at && { now: at }) }),
      advance: async (seconds) => this.call("PUT", "clock", { advance: seconds }),
      resume: async () => this.call("PUT", "clock", { freeze: false }),
    };
  }

  /** What `new TrackClient(…, { url })` of customerio-node takes. */
  get trackUrl() { return `${this.url}/api/v1`; }
  /** What `new APIClient(…, { url })` takes. */
  get apiUrl() { return `${this.url}/v1`; }
  /** What `new PipelinesClient(…, { url })` takes. */
  get pipelinesUrl() { return `${this.url}/v1`; }

  /** Environment variables for the code under test. */
  get environment() {
    return {
      CUSTOMERIO_TRACK_URL: this.trackUrl, CUSTOMERIO_API_URL: this.apiUrl,
      CUSTOMERIO_PIPELINES_URL: this.pipelinesUrl, CUSTOMERIO_SITE_ID: this.siteId,
      CUSTOMERIO_API_KEY: this.apiKey, CUSTOMERIO_APP_KEY: this.appKey,
      CUSTOMERIO_WRITE_KEY: this.writeKey, CUSTOMERIO_SIGNING_KEY: this.signingKey,
    };
  }

  /** Any control endpoint, as in `call("GET", "requests?status=401")`. */
  async call(method, endpoint, body, frames = this.call) {
    const trace = traceOf(frames);
    const response = await fetch(`${this.url}${this.#path}/__parlel/${endpoint}`, {
      method, body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await response.text();
    let answer = text;
    try { answer = JSON.parse(text); } catch { /* a page, or plain text */ }
    if (response.ok) return answer;
    const message = answer?.meta?.error ?? answer?.meta?.errors?.join("; ") ?? text;
    throw new CustomerioFakeError(message, response.status, trace);
  }

  /** The records of a list, oldest first: all, or those with these fields. */
  async list(list, match) {
    const query = match ? `?match=${encodeURIComponent(JSON.stringify(match))}` : "";
    const answer = await this.call("GET", `${list}${query}`, undefined, this.list);
    return answer[list === "pipeline-events" ? "events" : list];
  }

  people(match) { return this.list("customers", match); }
  events(match) { return this.list("events", match); }
  deliveries(match) { return this.list("deliveries", match); }
  devices(match) { return this.list("devices", match); }
  objects(match) { return this.list("objects", match); }
  journeys(match) { return this.list("journeys", match); }
  webhooks(match) { return this.list("webhooks", match); }
  requests(match) { return this.list("requests", match); }
  dropped(match) { return this.list("dropped", match); }

  /**
   * The records that are as wanted; throws the fake's own text, with the nearest ones, if it isn't
   * as expected. `match` has fields and values or matchers, and `exactly`, `atLeast`, `atMost`,
   * `none`, `inOrder`; with a `timeout` in seconds it is waited for.
   */
  async expect(list, match, frames = this.expect) {
    const body = { list, ...expectation(match) };
    return (await this.call("POST", "assert", body, frames)).records;
  }

  expectEvent(name, match) { return this.expect("events", { name, ...match }, this.expectEvent); }
  expectDelivery(match) { return this.expect("deliveries", match, this.expectDelivery); }
  expectNoDelivery(match) {
    return this.expect("deliveries", { none: true, ...match }, this.expectNoDelivery);
  }

  /** The first such record, as soon as it is there: within `timeout` seconds, 5 unless told. */
  async waitFor(list, match, frames = this.waitFor) {
    return (await this.expect(list, { timeout: 5, ...match }, frames))[0];
  }

  waitForEvent(name, match) {
    return this.waitFor("events", { name, ...match }, this.waitForEvent);
  }
  waitForDelivery(match) { return this.waitFor("deliveries", match, this.waitForDelivery); }

  /** The newest such record; throws if there is none. */
  async latest(list, match) { return (await this.expect(list, match, this.latest)).at(-1); }

  /** A link in the newest such message: the first with `text` in it. */
  async link(match, text = "") {
    const { rendered } = await this.latest("deliveries", match);
    const links = rendered.links?.map((link) => link.href)
      ?? rendered.body?.match(/https?:\/\/[^\s"'<>]+/g) ?? [];
    return this.#found(links.find((link) => link.includes(text)), `link with '${text}'`, rendered);
  }

  /** The one-time code in the newest such message: four to ten digits. */
  async code(match) {
    const { rendered } = await this.latest("deliveries", match);
    const text = rendered.body_plain ?? rendered.body?.replace(/<[^>]*>/g, " ") ?? "";
    return this.#found(text.match(/(?<![\w#.-])\d{4,10}(?![\w.-])/)?.[0], "code", rendered);
  }

  #found(value, what, rendered) {
    if (value !== undefined) return value;
    const text = `no ${what} in this message: ${JSON.stringify(rendered).slice(0, 500)}`;
    throw new CustomerioFakeError(text, 422);
  }

  /** Begin afresh with a seed document, to which `reset` returns. */
  seed(document) { return this.call("POST", "seed", document); }
  /** Forget everything, or only "state", "journal", "faults" or "clock". */
  reset(only) { return this.call("POST", "reset", only ? { only } : {}); }
  snapshot() { return this.call("GET", "state"); }
  restore(snapshot) { return this.call("PUT", "state", snapshot); }

  /**
   * Let requests go wrong: `fail("POST /v1/send/email", { status: 503, times: 2 })`, or
   * `responses`, one after the other. Ends with `stop()`, or with the block of `await using`.
   */
  async fail(operation, rule) {
    const { match, ...rest } = rule;
    const body = { match: { ...(operation && { operation }), ...match }, ...rest };
    const { id } = await this.call("POST", "faults", body, this.fail);
    const stop = async () => { await this.call("DELETE", `faults/${id}`).catch(() => {}); };
    return { id, stop, [DISPOSE]: stop };
  }
}

/** The fake itself, whose default workspace this is. */
export class CustomerioFake extends Workspace {
  #child;

  /** Use a fake that runs already, as one in a container. */
  static async connect(url = "http://127.0.0.1:4668") {
    const fake = new CustomerioFake(url.replace(/\/+$/, ""));
    await fake.call("GET", "clock");
    return fake;
  }

  /**
   * Run customerio_fake.py on a free port until `stop()`, or until this process ends. `file` is
   * where it lies, `python` what runs it, `args` are further flags, `seed` is a seed document.
   */
  static async start({ file = "customerio_fake.py", python = "python3", args = [], seed } = {}) {
    const { spawn } = await import("node:child_process");
    const child = spawn(python, [file, "0", ...args], { stdio: ["ignore", "pipe", "pipe"] });
    const url = await new Promise((resolve, reject) => {
      let said = "";
      const hear = (chunk) => {
        said += chunk;
        const match = /listens on (\S+)/.exec(said);
        if (match) resolve(match[1]);
      };
      child.stdout.on("data", hear);
      child.stderr.on("data", hear);
      child.on("error", (error) => reject(new CustomerioFakeError(`${python}: ${error.message}`)));
      child.on("exit", (code) => reject(
        new CustomerioFakeError(`${python} ${file} ended with ${code}: ${said.trim()}`)));
    });
    const end = () => child.kill();
    process.on("exit", end);
    child.on("exit", () => process.off("exit", end));
    for (const handle of [child, child.stdout, child.stderr]) handle.unref?.();
    const fake = new CustomerioFake(url);
    fake.#child = child;
    if (seed) await fake.seed(seed);
    return fake;
  }

  /** A world of its own for one test: `await using world = await fake.workspace()`. */
  async workspace({ name, seed } = {}) {
    const wanted = { ...(name && { name }), ...(seed && { seed }) };
    const record = await this.call("POST", "workspaces", wanted, this.workspace);
    const world = new Workspace(this.url, record);
    world.drop = async () => { await this.call("DELETE", `workspaces/${record.name}`); };
    world[DISPOSE] = world.drop;
    return world;
  }

  /** Stop what `start` has begun. */
  async stop() {
    if (!this.#child || this.#child.exitCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.ref();
    this.#child.kill();
    await ended;
  }
}

CustomerioFake.prototype[DISPOSE] = CustomerioFake.prototype.stop;
"""
#: Its types, but for the records.
_JS_TYPES = """// Types of customerio-fake.mjs. Made by `python customerio_fake.py client --types`.

%(records)s/** A value, or what is said of it; several of these must all hold. */
export type Wanted<T> = T | {
  contains?: string; regex?: string; gt?: unknown; gte?: unknown; lt?: unknown; lte?: unknown;
  absent?: boolean; one_of?: unknown[]; not?: unknown;
} | Record<string, unknown>;

export interface Amounts {
  exactly?: number; atLeast?: number; atMost?: number; none?: boolean;
  inOrder?: Record<string, unknown>[];
  /** Seconds to wait. */
  timeout?: number;
}
export type Match<T> = { [K in keyof T]?: Wanted<T[K]> };
export type DeliveryMatch = Match<DeliveryRecord>
  & { to?: Wanted<string>; subject?: Wanted<string>; body?: Wanted<string> };
export interface Lists {
%(lists)s}
type Asked<L extends keyof Lists> =
  (L extends "deliveries" ? DeliveryMatch : Match<Lists[L]>) & Amounts;

export interface Rule {
  match?: Record<string, string>;
  times?: number; every?: number; after?: number; probability?: number; seed?: number;
  when?: "before" | "after"; status?: number; body?: unknown; retry_after?: number | string;
  latency?: number; jitter?: number; reset?: boolean; empty?: boolean; truncate?: number;
  hang?: boolean; trickle?: number; responses?: Omit<Rule, "responses" | "match" | "times">[];
}
export interface Failing extends AsyncDisposable { id: number; stop(): Promise<void>; }

export class CustomerioFakeError extends Error { status?: number; }

export class Workspace {
  readonly url: string; readonly name: string; readonly siteId: string; readonly apiKey: string;
  readonly appKey: string; readonly writeKey: string; readonly signingKey: string;
  readonly trackUrl: string; readonly apiUrl: string; readonly pipelinesUrl: string;
  readonly environment: Record<string, string>;
  readonly clock: {
    now(): Promise<number>; freeze(at?: number): Promise<unknown>;
    advance(seconds: number): Promise<unknown>; resume(): Promise<unknown>;
  };
  call(method: string, endpoint: string, body?: unknown): Promise<any>;
  list<L extends keyof Lists>(list: L, match?: Match<Lists[L]>): Promise<Lists[L][]>;
  people(match?: Match<PersonRecord>): Promise<PersonRecord[]>;
  events(match?: Match<EventRecord>): Promise<EventRecord[]>;
  deliveries(match?: DeliveryMatch): Promise<DeliveryRecord[]>;
  devices(match?: Match<DeviceRecord>): Promise<DeviceRecord[]>;
  objects(match?: Match<ObjectRecord>): Promise<ObjectRecord[]>;
  journeys(match?: Match<JourneyRecord>): Promise<JourneyRecord[]>;
  webhooks(match?: Match<ReportRecord>): Promise<ReportRecord[]>;
  requests(match?: Match<RequestRecord>): Promise<RequestRecord[]>;
  dropped(match?: Match<DroppedRecord>): Promise<DroppedRecord[]>;
  expect<L extends keyof Lists>(list: L, match?: Asked<L>): Promise<Lists[L][]>;
  expectEvent(name: string, match?: Asked<"events">): Promise<EventRecord[]>;
  expectDelivery(match?: Asked<"deliveries">): Promise<DeliveryRecord[]>;
  expectNoDelivery(match?: Asked<"deliveries">): Promise<DeliveryRecord[]>;
  waitFor<L extends keyof Lists>(list: L, match?: Asked<L>): Promise<Lists[L]>;
  waitForEvent(name: string, match?: Asked<"events">): Promise<EventRecord>;
  waitForDelivery(match?: Asked<"deliveries">): Promise<DeliveryRecord>;
  latest<L extends keyof Lists>(list: L, match?: Asked<L>): Promise<Lists[L]>;
  link(match: Asked<"deliveries">, text?: string): Promise<string>;
  code(match: Asked<"deliveries">): Promise<string>;
  seed(document: Record<string, unknown>): Promise<unknown>;
  reset(only?: "state" | "journal" | "faults" | "clock"): Promise<unknown>;
  snapshot(): Promise<unknown>;
  restore(snapshot: unknown): Promise<unknown>;
  fail(operation: string, rule: Rule): Promise<Failing>;
}

export interface World extends Workspace, AsyncDisposable { drop(): Promise<void>; }

export class CustomerioFake extends Workspace implements AsyncDisposable {
  static connect(url?: string): Promise<CustomerioFake>;
  static start(options?: {
    file?: string; python?: string; args?: string[]; seed?: Record<string, unknown>;
  }): Promise<CustomerioFake>;
  workspace(options?: { name?: string; seed?: Record<string, unknown> }): Promise<World>;
  stop(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}
"""


def js_types() -> str:
    """The types of the client; those of the records follow from the TypedDicts above."""
    from typing import get_type_hints

    kinds = {row.type: None for row in COLLECTIONS.values() if row.fields and row.type is not str}
    records = ""
    for kind in kinds:
        names = "".join(f"  {name}: {_js_type(h)};\n" for name, h in get_type_hints(kind).items())
        records += f"export interface {kind.__name__} {{\n{names}}}\n\n"
    lists = "".join(f'  "{n}": {_js_type(row.type)};\n' for n, row in COLLECTIONS.items())
    return _JS_TYPES % {"records": records, "lists": lists}


def _js_type(hint: Any) -> str:
    """A Python type of a record in TypeScript."""
    from typing import get_args, get_origin

    origin, parts = get_origin(hint), [_js_type(part) for part in get_args(hint)]
    if origin is Union:
        return " | ".join(parts)
    if origin is list:
        return f"{parts[0]}[]"
    if origin is dict or hint is dict:
        return f"Record<string, {parts[1] if parts else 'unknown'}>"
    return _JS_NAMES.get(hint) or hint.__name__


_JS_NAMES = {
    str: "string", int: "number", float: "number", bool: "boolean", type(None): "null",
    Any: "unknown",
}  # fmt: skip


@route("GET", "/__parlel/client.mjs", CONTROL)
def js_client(call: Call) -> Response:
    """The client for JavaScript, one file without dependencies."""
    return Response(200, JS_CLIENT.encode(), _SCRIPT)


@route("GET", "/__parlel/client.d.ts", CONTROL)
def js_client_types(call: Call) -> Response:
    """The types of the client for JavaScript."""
    return Response(200, js_types().encode(), _SCRIPT)


_SCRIPT = (("Content-Type", "text/javascript; charset=utf-8"),)


# ======================================================================================
# ==== §26 Server
# ======================================================================================

#: Limits of one request's head.
MAX_HEAD = 64 * 1024
MAX_LINE = 16 * 1024
MAX_FIELDS = 100

#: How long the rest of a refused request is read and thrown away, in seconds, so that the
#: client gets to see the answer instead of a reset.
LINGER = 2.0
#: When nothing has been asked for this long, in seconds, there is time to free memory; or once
#: there is that much of it.
IDLE, MAX_SPENT = 0.01, 3
#: From here on in a turn of the loop, in seconds, each connection gets one answer at most.
TURN = 0.005
#: How long the loop goes on at the end with what has arrived, in seconds.
LAST_TURNS = 0.1
#: A thread whose client has been silent for this long, in seconds, gives way when none are left.
REST = 1.0
#: How many connections the loop may have: on Windows there is only `select`, for 512 sockets.
MAX_OPEN = 500 if os.name == "nt" else sys.maxsize
#: How often it is looked for what is waited for without a thread, in seconds.
LOOK = 0.25

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([^\x00-\x20\x7f]+) HTTP/1\.([01])\r\n".encode())
#: What the first bytes of a request line can be; nobody waits for more of what is none.
_LINE_BEGUN = re.compile(rf"\r|{_TOKEN}(?: [^\x00-\x20\x7f]*(?: [HTP]*/?[\d.]*\r?)?)?".encode())
_FIELD = re.compile(rf"({_TOKEN}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)".encode())
_LONE_LF = re.compile(rb"(?<!\r)\n")
_URL = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


def _bad_request(message: str, status: int = 400) -> ApiError:
    return ApiError(status, message, close=True)


class Fields(Dict[str, str]):
    """The header fields of a request by lower-case name, and what they say about framing."""

    __slots__ = ("chunked", "connection", "expects", "length")

    length: int
    chunked: bool
    connection: Set[str]
    expects: bool


def parse_fields(block: bytes) -> Fields:
    """Read header lines and what they say about framing. Raises ApiError 400, 417, 431 or 501."""
    return _framed(read_fields(block))


def read_fields(block: bytes) -> Fields:
    """Read the lines of a head or of trailers. Raises ApiError 400 or 431."""
    lines = block.split(b"\r\n") if block else []
    if len(lines) > MAX_FIELDS or len(max(lines, key=len, default=b"")) > MAX_LINE:
        raise _bad_request("too many or too long header fields", 431)
    values = Fields()
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _bad_request(f"malformed header line {line[:80]!r}")
        name, value = match[1].decode("ascii").lower(), match[2].decode("latin-1").rstrip(" \t")
        if name in values:
            if name in _ONCE:
                raise _bad_request(f"header field {name} is given more than once")
            value = f"{values[name]}, {value}"
        values[name] = value
    return values


_ONCE = {"content-length", "transfer-encoding", "host", "authorization", "content-type"}


def _framed(values: Fields) -> Fields:
    length = values.get("content-length", "0")
    if not re.fullmatch(r"\d{1,15}", length):
        raise _bad_request(f"Content-Length '{length[:40]}' is not a length")
    coding = values.get("transfer-encoding")
    if coding is not None and "content-length" in values:
        raise _bad_request("both Content-Length and Transfer-Encoding are given")
    if coding is not None and coding.lower() != "chunked":
        raise _bad_request(f"Transfer-Encoding '{coding[:40]}' is not supported", 501)
    expect = values.get("expect", "")
    if expect and expect.lower() != "100-continue":
        raise _bad_request(f"Expect '{expect[:40]}' is not supported", 417)
    if not re.fullmatch(r"[^\s/@?#]*", values.get("host", "")):
        raise _bad_request(f"Host '{values['host'][:80]}' is not the name of a host")
    values.length, values.chunked = int(length), coding is not None
    words = values.get("connection", "").lower().split(",")
    values.connection, values.expects = {word.strip() for word in words}, bool(expect)
    return values


# A client sends the same header block again and again, so parsing it once will do.
_parse_fields_cached = functools.lru_cache(maxsize=512)(parse_fields)


class Framer:
    """Cuts the bytes of one connection into requests; both ways of serving use it.

    `feed` takes what came in; `next` gives a complete request, or None while bytes are missing.
    """

    __slots__ = (
        "_chunks", "_continued", "_fields", "_line", "buffer", "keep_alive", "max_body",
        "scheme", "version",
    )  # fmt: skip

    def __init__(self, max_body: int) -> None:
        self.max_body, self.scheme = max_body, "http"
        self.buffer: Union[bytes, bytearray] = b""
        #: Whether the connection may go on after the last request that `next` gave.
        self.keep_alive = True
        self.version = b"1"
        self._line: Tuple[str, str] = ("", "")
        self._fields: Optional[Fields] = None
        self._chunks = bytearray()
        self._continued = False

    def feed(self, data: bytes) -> bool:
        """Take in what was received; whether a request begins with it."""
        if not self.buffer:
            self.buffer = data
            return self._fields is None
        if isinstance(self.buffer, bytes):
            self.buffer = bytearray(self.buffer)
        self.buffer += data
        return False

    @property
    def idle(self) -> bool:
        """Whether no request has been begun."""
        return not self.buffer and self._fields is None

    def wants_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body; said once."""
        fields = self._fields
        if fields is None or not fields.expects or self._continued or self.buffer:
            return False
        if self.version == b"0":  # which does not know 100 (RFC 9110 10.1.1)
            return False
        self._continued = True
        return True

    def next(self) -> Optional[Request]:
        """The next complete request. Raises ApiError, after which the connection must end."""
        fields = self._take_head() if self._fields is None else self._fields
        if fields is None:
            return None
        if fields.chunked:
            body = self._take_chunked()
            if body is None:
                return None
        else:
            buffer, length = self.buffer, fields.length
            if len(buffer) < length:
                return None
            body, self.buffer = bytes(buffer[:length]), buffer[length:]
        (method, target), self._line = self._line, ("", "")
        self._fields, self._continued = None, False
        return Request(method, target, fields, body, self.scheme)

    @property
    def method(self) -> str:
        """The method of the request that has been begun; "" if there is none."""
        return self._line[0]

    def _take_head(self) -> Optional[Fields]:
        buffer = self.buffer
        if buffer.startswith(b"\r\n"):  # RFC 9112 2.2: empty lines before a request are skipped
            buffer = self.buffer = buffer.lstrip(b"\r\n")
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if buffer:
                self._check_begun(buffer)
            return None
        line_end = self._take_line(buffer, end)
        block = bytes(buffer[line_end + 2 : end])
        fields = _parse_fields_cached(block) if len(block) < 2048 else parse_fields(block)
        if fields.length > self.max_body:
            raise self._too_large()
        self.keep_alive = "close" not in fields.connection
        if self.version == b"0":  # whose chunks nobody can be sure of (RFC 9112 6.1)
            self.keep_alive &= "keep-alive" in fields.connection and not fields.chunked
        elif not fields.get("host"):
            raise _bad_request("a request in HTTP/1.1 must name its Host")
        self._fields, self.buffer = fields, buffer[end + 4 :]
        return fields

    def _check_begun(self, buffer: Union[bytes, bytearray]) -> None:
        """Refuse the beginning of a head as soon as nothing can make it a good one."""
        if len(buffer) > MAX_HEAD:
            raise _bad_request("the request's head is too long", 431)
        line, found, _ = buffer.partition(b"\n")
        if _LONE_LF.search(buffer):
            raise _bad_request("lines must end with CR LF")
        if found:
            self._take_line(buffer, len(line) - 1)
        elif not _LINE_BEGUN.fullmatch(line):
            raise _bad_request(f"malformed request line {bytes(line[:80])!r}")

    def _too_large(self) -> ApiError:
        text = f"the body is larger than {self.max_body} bytes: raise --max-body"
        return _bad_request(text, 413)

    def _take_line(self, buffer: Union[bytes, bytearray], end: int) -> int:
        """Read the request line at the start of a head; returns where it ends."""
        match = _REQUEST_LINE.match(buffer)
        if match is None:
            line = bytes(buffer[:end]).partition(b"\r\n")[0]
            if re.search(rb" HTTP/(?!1\.[01]$)\d(\.\d)?$", line):
                raise _bad_request("only HTTP/1.0 and HTTP/1.1 are spoken here", 505)
            raise _bad_request(f"malformed request line {line[:80]!r}")
        word, target, self.version = match.groups()
        method = word.decode("ascii")
        self._line = method, ""  # a refusal asks for the method
        if len(target) > MAX_LINE:
            raise _bad_request("the request target is too long", 414)
        try:
            self._line = method, target.decode("utf-8")
        except UnicodeDecodeError:
            raise _bad_request("the request target is not UTF-8") from None
        if target[:1] != b"/" and not self._may_ask_for(*self._line):
            raise _bad_request("the request target must be a path, or a URL")
        return match.end() - 2

    def _may_ask_for(self, method: str, target: str) -> bool:
        """Whether a target that is no path is one all the same (RFC 9112 3.2)."""
        return bool(_URL.match(target)) or (method, target) == ("OPTIONS", "*")

    def _take_chunked(self) -> Optional[bytes]:
        """The body once its last chunk and the trailers are there; chunks are kept meanwhile."""
        buffer, at, size = self.buffer, 0, 1
        while True:
            end = buffer.find(b"\r\n", at, at + MAX_LINE)
            if end < 0:
                if len(buffer) - at >= MAX_LINE or buffer.find(b"\n", at) >= 0:
                    raise _bad_request("malformed chunk size")
                break
            match = _CHUNK_SIZE.fullmatch(buffer, at, end)
            if match is None:
                raise _bad_request("malformed chunk size")
            size = int(match[1], 16)
            last = end + 2 + size
            if len(self._chunks) + size > self.max_body:
                raise self._too_large()
            if size == 0 or len(buffer) < last + 2:
                break
            if buffer[last : last + 2] != b"\r\n":
                raise _bad_request("a chunk is longer than its size says")
            self._chunks += buffer[end + 2 : last]
            at = last + 2
        if at:  # once for all of them: many chunks of one byte each must not copy the rest each
            self.buffer = buffer[at:]
        return self._take_trailers(end - at) if size == 0 else None

    def _take_trailers(self, end: int) -> Optional[bytes]:
        """The body, if the lines after its last chunk are there, too; they say nothing to us."""
        buffer = self.buffer
        finish = buffer.find(b"\r\n\r\n", end)
        if finish < 0:
            if len(buffer) > MAX_LINE:
                raise _bad_request("the trailers are too long", 431)
            if _LONE_LF.search(buffer):
                raise _bad_request("lines must end with CR LF")
            return None
        read_fields(bytes(buffer[end + 2 : finish]))
        self.buffer = buffer[finish + 4 :]
        body, self._chunks = bytes(self._chunks), bytearray()
        return body


_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@functools.lru_cache(maxsize=256)
def _head(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, ""]).encode("latin-1", "replace")


@functools.lru_cache(maxsize=8)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def response_bytes(response: Response, method: str, version: bytes, keep_alive: bool) -> bytes:
    """A response as it goes over the wire, head and body in one piece.

    One piece, because a head and a body in two packets meet Nagle's algorithm: 44 ms a call.
    """
    body = b"" if method == "HEAD" else response.body
    length = b"" if response.status == 204 else b"Content-Length: %d\r\n" % len(response.body)
    connection = b""
    if not keep_alive:
        connection = b"Connection: close\r\n"
    elif version == b"0":
        connection = b"Connection: keep-alive\r\n"
    date = _date(int(time.time()))
    head = _head(response.status, response.headers)
    return b"%b%b%bDate: %b\r\n\r\n%b" % (head, length, connection, date, body)


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TLS_HANDSHAKE = b"\x16"
_OVERLOADED = ApiError(
    503,
    "too many requests are waiting; raise --max-threads or send fewer at once",
    headers=[("Retry-After", "1")],
    close=True,
)


class Connection:
    """One client's socket and what was read from it."""

    __slots__ = (
        "draining", "ending", "fault", "framer", "fresh", "kept", "peer", "ready", "since",
        "socket", "unsent",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, peer: str, max_body: int, now: float) -> None:
        self.socket, self.peer = sock, peer
        self.framer = Framer(max_body)
        #: When the connection became idle, or its current request began; monotonic seconds.
        self.since = now
        #: No byte has been read yet, so it may still turn out to speak TLS.
        self.fresh = True
        #: What is unsent is the last that the client gets from us.
        self.ending = False
        #: Done with; what still comes in is thrown away.
        self.draining = False
        #: The thread is done with it and the loop may have it back.
        self.kept = False
        #: What is to be done first: send these answers, answer this request.
        self.unsent = b""
        #: What goes wrong on purpose with the answer on its way.
        self.fault: Optional[Fault] = None
        self.ready: Optional[Request] = None

    @property
    def resting(self) -> bool:
        """Whether its thread just waits for the client to say something; for any thread."""
        busy = self.ready is not None or self.unsent or self.kept or self.draining
        return not busy and self.framer.idle

    def close(self) -> None:
        """Close the socket; never raises."""
        with contextlib.suppress(OSError):
            self.socket.close()


class Server(ThreadingHTTPServer):
    """The HTTP side: one loop for what is ready, a thread for what waits.

    The loop (`serve_forever`) keeps every plain connection in a selector and answers in its own
    thread whatever has arrived whole. TLS, heavy operations, large bodies and clients that read
    slowly go the standard way, `process_request`, to a thread running a `WaitingHandler`; a
    plain connection comes back to the loop afterwards, so an idle one costs no thread. Threads
    that all have work would only fight over the interpreter lock: with 64 connections the loop
    answers twice as many requests a second.
    """

    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port
    daemon_threads = True
    request_queue_size = 1024
    #: How long `stop` lets requests in flight finish, in seconds.
    grace = 0.35
    #: How many control calls get a thread beyond `max_threads`.
    spare = 16

    def __init__(self, settings: Settings, fake: Fake) -> None:
        self.settings, self.fake = settings, fake
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._open: Dict[int, Connection] = {}
        self._waiting: Dict[threading.Thread, Connection] = {}
        #: Threads that are done but may not have ended yet; `stop` waits for that.
        self._leaving: Deque[threading.Thread] = deque(maxlen=256)
        self._returned: Deque[Connection] = deque()
        #: The connections with unsent answers, in their order.
        self._outgoing: Dict[Connection, None] = {}
        #: Those with requests that have arrived and must wait for the next turn.
        self._more: Dict[Connection, None] = {}
        #: Those that wait for news, each with its request in `ready`, and when it was looked for.
        self._parked: Dict[Connection, None] = {}
        self._looked = 0.0
        #: What is to be freed: a workspace of 10,000 people takes 5 ms, longer than its reset.
        self._spent: List[Any] = []
        self._stopping = False
        #: When the loop last woke up; monotonic seconds.
        self._now = time.monotonic()
        # Made when the first client asks for it; but a certificate of your own is tried now.
        self._tls = make_tls_context(settings) if settings.cert else None
        self._tls_lock = threading.Lock()
        self._waker, self._alarm = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        #: This is the copy in a forked process, and not ours to steer.
        self.foreign = False
        # If it can't listen, this calls `server_close`, which needs all of the above.
        super().__init__((settings.host, settings.port), WaitingHandler)
        self.socket.setblocking(False)
        self._alarm.setblocking(False)
        self._selector.register(self.socket, selectors.EVENT_READ, self._accept)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._take_back)
        _SERVERS.add(self)

    def server_bind(self) -> None:
        """Bind without the reverse look-up of HTTPServer, which can take 35 s (pip #13742)."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    # ---- the loop

    def serve_forever(self, poll_interval: float = 1.0) -> None:
        """Answer until `shutdown`; look for timeouts every `poll_interval` seconds."""
        swept, self.fake.discard = self._now, self._discard
        with hurrying():
            while not self._stopping:
                waiting = self._open or any(f.workspace.clock.waits for f in self.fake.all)
                timeout = IDLE if self._spent else poll_interval if waiting else None
                timeout = min(timeout or LOOK, LOOK) if self._parked else timeout
                if not self._turn(timeout) or len(self._spent) > MAX_SPENT:
                    self._spent.clear()
                if self._now - swept >= poll_interval:
                    swept = self._now
                    self._sweep(swept)
            self._turn(0)  # what has arrived by now is answered, within reason
            end = time.monotonic() + LAST_TURNS
            while self._more and time.monotonic() < end:
                self._turn(0)
        self.fake.discard = lambda thing: None
        self._spent.clear()

    def _discard(self, thing: Any) -> None:
        self._spent.append(thing)
        self._wake()

    def _turn(self, timeout: Optional[float]) -> bool:
        """Wait for something to do, at most `timeout` seconds, and do it; whether there was any."""
        more, self._more = self._more, {}
        ready = self._selector.select(0 if more else timeout)
        self._now = time.monotonic()
        # Whose turn it was is not read as well: a thread, or nobody, may have it by then.
        work: Dict[int, Callable[[], Any]] = {}
        for connection in more:
            work[connection.socket.fileno()] = functools.partial(self._answer, connection)
        for key, _ in ready:
            work.setdefault(key.fd, key.data)
        if self._parked and (self._now - self._looked >= LOOK or self._stopping):
            self._looked = self._now
            for connection in self._parked:
                again = functools.partial(self._ask_again, connection)
                work.setdefault(connection.socket.fileno(), again)
        for number, do in work.items():
            try:
                do()
            except Exception as error:
                self._lose(number, error)
        # Waking a client that sleeps costs more than answering it, so all of them are answered
        # first and then woken together: a fifth more requests a second with 64 connections.
        outgoing, self._outgoing = self._outgoing, {}
        for connection in outgoing:
            self._send(connection)
        return bool(ready or more)

    def _lose(self, number: int, error: Exception) -> None:
        """Lose one connection (by its file number) rather than the loop, and all of them."""
        log.error("lost a connection: %r", error)
        connection = self._open.get(number)
        if connection is not None:
            self._close(connection)

    def shutdown(self) -> None:
        """Make `serve_forever` return; from any thread."""
        self._stopping = True
        self.fake.ending.set()
        for fake in self.fake.all:  # for those who wait for something to happen
            if fake.workspace.news.waiting:
                fake.workspace.news.tell()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, address = self.socket.accept()
            except (BlockingIOError, ConnectionError):  # the client may have gone already
                return
            except OSError as error:  # out of file descriptors
                log.warning("can't accept: %s; ending the longest silent connection", error)
                if not self._shed([*self._open.values(), *self._resting()]):
                    time.sleep(0.01)
                return
            with contextlib.suppress(OSError):  # the client may have gone already
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._adopt(Connection(sock, address[0], self.settings.max_body, self._now))

    def _resting(self) -> List[Connection]:
        waiting = list(self._waiting.values())
        return [c for c in waiting if c.resting and self._now - c.since > REST]

    def _shed(self, connections: Sequence[Connection]) -> bool:
        """End the connection that has been silent longest; False if there is none."""
        if not connections:
            return False
        oldest = min(connections, key=lambda connection: connection.since)
        if self._open.get(oldest.socket.fileno()) is oldest:
            self._close(oldest)
        else:  # its thread will close it
            oldest.draining = True
            hang_up(oldest.socket)
        return True

    def _adopt(self, connection: Connection) -> None:
        if len(self._open) >= MAX_OPEN:
            self._shed([*self._open.values()])
        connection.socket.setblocking(False)
        read = functools.partial(self._read, connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, read)
        self._open[connection.socket.fileno()] = connection

    def _release(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        del self._open[connection.socket.fileno()]
        self._outgoing.pop(connection, None)
        self._more.pop(connection, None)
        self._parked.pop(connection, None)

    def _close(self, connection: Connection) -> None:
        # `_shed` may have closed it in this very turn, before its own event was looked at.
        if connection.socket.fileno() >= 0:
            self._release(connection)
            connection.close()

    def _take_back(self) -> None:
        """Wake up; take the connections back that threads are done with."""
        with contextlib.suppress(OSError):
            self._alarm.recv(4096)
        while self._returned:
            connection = self._returned.popleft()
            connection.kept, connection.since = False, self._now
            self._adopt(connection)
            if connection.ending:
                self._finish(connection)
            else:
                self._answer(connection)

    def _sweep(self, now: float) -> None:
        """Close what has been idle for too long, or takes too long to send a request.

        What the fake's clock has made due is done here, too, so that nobody need ask for it.
        """
        for fake in self.fake.all:
            fake.workspace.agenda.tick()
        for connection in list(self._open.values()):
            silent = now - connection.since
            if connection in self._parked:
                continue
            if connection.draining:
                if silent > LINGER:
                    self._close(connection)
            elif connection.framer.idle:
                if silent > self.settings.idle_timeout:
                    self._close(connection)
            elif silent > self.settings.read_timeout:
                self._refuse(connection, ApiError(408, "the request did not arrive in time"))

    def _read(self, connection: Connection) -> None:
        try:
            if connection.fresh:
                connection.fresh = False
                if connection.socket.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
                    connection.framer.scheme = "https"
                    self._hand_over(connection)
                    return
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
        elif not connection.draining:
            if connection.framer.feed(data):
                connection.since = self._now
            if connection in self._parked:  # who goes on waits no longer
                cast(Request, connection.ready).until = 0.0
                self._ask_again(connection)
            else:
                self._answer(connection)

    def _ask_again(self, connection: Connection) -> None:
        data = self.respond(connection, cast(Request, connection.ready))
        if data:
            del self._parked[connection]
            connection.ready, connection.since = None, self._now
            connection.ending = not connection.framer.keep_alive
            self._queue(connection, data)
            if not connection.ending:
                self._more[connection] = None  # what has come in meanwhile

    def _answer(self, connection: Connection) -> None:
        """Answer every request that has arrived whole."""
        framer = connection.framer
        while True:
            try:
                request = framer.next()
            except ApiError as error:
                self._refuse(connection, error)
                return
            if request is None:
                self._go_on(connection)
                return
            packed = "content-encoding" in request.headers  # and who knows how large
            if packed or len(request.body) > LOOP_BODY or self.fake.is_heavy(request):
                self._leave_to_thread(connection, request)
                return
            data = self.respond(connection, request)
            connection.since = self._now
            if not data:
                self._put_off(connection, request)
                return
            connection.unsent += data
            self._outgoing[connection] = None
            if not framer.keep_alive:
                connection.ending = True
                return
            if not framer.buffer or (
                len(connection.unsent) > LOOP_BODY and not self._send(connection)
            ):
                return
            if time.monotonic() - self._now > TURN:
                self._more[connection] = None
                return

    def _leave_to_thread(self, connection: Connection, request: Request) -> None:
        connection.ready = request
        if self._send(connection):
            self._hand_over(connection)

    def _put_off(self, connection: Connection, request: Request) -> None:
        """Have an answer made in a thread, or asked for again when there is something to say."""
        if request.made is not None:
            self._leave_to_thread(connection, request)
        else:
            connection.ready = request
            self._parked[connection] = None

    def _go_on(self, connection: Connection) -> None:
        if connection.framer.wants_continue():
            self._queue(connection, _CONTINUE)

    def respond(self, connection: Connection, request: Request) -> bytes:
        """Answer one request and write it to the access log; gives the bytes to send.

        None of them where there is nothing to say yet: ask again after LOOK seconds.
        """
        framer = connection.framer
        began = time.perf_counter() if log.isEnabledFor(logging.INFO) else 0.0
        response = self.fake.handle(request)
        if response.later:
            return b""
        if response.close:
            framer.keep_alive = False
        if response.fault is not None:
            connection.fault = response.fault
        if began:
            log.info(told_of(request, response, time.perf_counter() - began))
        return response_bytes(response, request.method, framer.version, framer.keep_alive)

    def _queue(self, connection: Connection, data: bytes) -> None:
        """Have something sent at the end of this turn."""
        connection.unsent += data
        self._outgoing[connection] = None

    def _send(self, connection: Connection) -> bool:
        """Send what is unsent, without waiting; False if the loop is done with the connection."""
        data = connection.unsent
        try:
            sent = connection.socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return False
        connection.unsent = data[sent:]
        if connection.unsent:
            self._hand_over(connection)
            return False
        if connection.ending:
            self._finish(connection)
            return False
        return True

    def _finish(self, connection: Connection) -> None:
        """Say that no more will come, and let the client close."""
        connection.draining, connection.since = True, self._now
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)

    def _refuse(self, connection: Connection, error: ApiError) -> None:
        """Answer what can't be read any further, and end the connection."""
        log.warning("%d for %s: %s", error.status, connection.peer, error.message)
        connection.framer.keep_alive, connection.ending = False, True
        self._queue(connection, refusal(connection, error))
        self._send(connection)

    # ---- threads for what waits

    def _hand_over(self, connection: Connection) -> None:
        self._release(connection)
        try:
            most, ready = self.settings.max_threads, connection.ready
            if ready is not None and ready.path.startswith("/__parlel/"):
                most += self.spare  # so that a test can still mend what it broke
            full = len(self._waiting) >= most
            if full and not self._shed(self._resting()):
                raise RuntimeError("max_threads is reached")
            connection.socket.setblocking(True)
            self.process_request(connection, connection.peer)
        except (RuntimeError, OSError) as error:
            log.warning("no thread for %s: %s", connection.peer, error)
            self._turn_away(connection)

    def _turn_away(self, connection: Connection) -> None:
        self._adopt(connection)
        if connection.framer.scheme == "https" or connection.unsent:
            self._close(connection)
        else:
            self._refuse(connection, _OVERLOADED)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection that has to wait. Raises RuntimeError if none is left."""
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        thread.name = "customerio-fake-waiting"
        self._waiting[thread] = request
        try:
            thread.start()
        except RuntimeError:
            del self._waiting[thread]
            raise

    def shutdown_request(self, request: Any) -> None:
        """Give a connection back to the loop, or close it; its thread does nothing after this."""
        # First, so that the connection's next request finds the thread's place free.
        self._leaving.append(threading.current_thread())
        del self._waiting[threading.current_thread()]
        if request.kept and not self._stopping:
            self._returned.append(request)
            self._wake()
        else:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note in one line what a thread could not cope with; never a traceback."""
        error = sys.exc_info()[1]
        level = logging.INFO if isinstance(error, OSError) else logging.ERROR
        log.log(level, "lost the connection of %s: %r", client_address, error)

    def tls_context(self) -> ssl.SSLContext:
        """The TLS side of the port, made when the first client asks for it."""
        with self._tls_lock:
            if self._tls is None:
                self._tls = make_tls_context(self.settings)
            return self._tls

    # ---- the end

    def server_close(self) -> None:
        """Close everything; requests in flight get `grace` seconds to finish."""
        deadline = time.monotonic() + self.grace
        super().server_close()
        for connection in list(self._open.values()):
            self._close(connection)
        self._end_threads(deadline)
        self._join_threads(deadline + self.grace / 4)
        for connection in self._returned:
            connection.close()
        self._selector.close()
        self._waker.close()
        self._alarm.close()

    def _end_threads(self, deadline: float) -> None:
        while self._waiting and time.monotonic() < deadline:
            for connection in list(self._waiting.values()):
                if connection.resting:  # or does so now, its last request being answered
                    hang_up(connection.socket)
            for thread in list(self._waiting)[:1]:
                thread.join(0.005)
        for connection in list(self._waiting.values()):
            hang_up(connection.socket)

    def _join_threads(self, deadline: float) -> None:
        for thread in [*self._waiting, *self._leaving]:
            thread.join(max(0.0, deadline - time.monotonic()))


_SERVERS: weakref.WeakSet[Server] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """A fork copies sockets, not threads: let go, so that no port or client hangs on the child."""
    for server in list(_SERVERS):
        server.foreign = True
        server._selector.close()  # first: what it is told of, the parent's would hear, too
        for connection in (*server._open.values(), *server._waiting.values(), *server._returned):
            connection.close()
        for own in (server.socket, server._waker, server._alarm):
            own.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def refusal(connection: Connection, error: ApiError) -> bytes:
    """The last answer on a connection."""
    method = connection.ready.method if connection.ready else connection.framer.method
    return response_bytes(failure(SHARED, error), method, connection.framer.version, False)


_DISTRUST = (
    "%s does not trust the fake's certificate: give it the one at /__parlel/ca.pem, for example by "
    "REQUESTS_CA_BUNDLE, NODE_EXTRA_CA_CERTS or SSL_CERT_FILE"
)


class WaitingHandler(BaseHTTPRequestHandler):
    """Serves, in a thread, a connection that has to wait: TLS, heavy work, slow readers.

    A plain connection is served until its next request can be left to the loop again; a TLS
    connection until its end.
    """

    request: Connection
    server: Server
    #: Whether the connection was broken off on purpose.
    broken = False

    def setup(self) -> None:
        """Take over the socket."""
        settings = self.server.settings
        connection = self.request
        connection.socket.settimeout(settings.read_timeout)
        if connection.framer.scheme == "https":
            # The handshake waits for `handle`, when `stop` knows which socket to hang up.
            connection.socket = self.server.tls_context().wrap_socket(
                connection.socket, server_side=True, do_handshake_on_connect=False
            )
        self.connection = connection.socket

    def handle(self) -> None:
        """Serve requests until the connection ends or can go back to the loop."""
        connection = self.request
        try:
            if connection.framer.scheme == "https":
                cast("ssl.SSLSocket", self.connection).do_handshake()
            if connection.unsent:
                self.connection.sendall(connection.unsent)
                connection.unsent = b""
                connection.kept = connection.ready is None
            self.close_connection = False
            while not self.close_connection and not connection.kept:
                self.handle_one_request()
        except OSError as error:  # a client that resets, stops reading, or fails the handshake
            log.info("%s went away: %s", connection.peer, error)
            if re.search("CERTIFICATE_UNKNOWN|UNKNOWN_CA|BAD_CERTIFICATE", str(error)):
                log.warning(_DISTRUST, connection.peer)

    def handle_one_request(self) -> None:
        """Answer one request; decide what becomes of the connection."""
        connection = self.request
        try:
            request = self._next_request()
        except ApiError as error:
            self.connection.sendall(refusal(connection, error))
            self._linger()
            self.close_connection = True
            return
        if request is None:
            self.close_connection = True
            return
        request.awaited = self._awaited
        whole = self._deliver(self._respond(request))
        connection.ready, connection.ending = None, not connection.framer.keep_alive
        connection.kept = whole and connection.framer.scheme == "http"
        self.close_connection = connection.ending

    def _respond(self, request: Request) -> bytes:
        while True:
            data = self.server.respond(self.request, request)
            if data:
                return data
            if not self._awaited():
                raise ConnectionAbortedError("while it waited for news")
            self.server.fake.ending.wait(LOOK)

    def _awaited(self) -> bool:
        """Whether the client has not gone away; TLS does not let us look."""
        if self.request.framer.scheme == "https":
            return True
        try:
            self.connection.settimeout(0)
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.connection.settimeout(self.server.settings.read_timeout)

    def _deliver(self, data: bytes) -> bool:
        """Send an answer, unless something is to go wrong with it; whether it went whole."""
        connection = self.request
        fault, connection.fault = connection.fault, None
        if fault is None or fault.effect in ("status", "latency"):
            self.connection.sendall(data)
        elif fault.effect == "trickle":
            self._trickle(data, fault.rule["trickle"])
        else:
            self._break_off(fault, data)
            return False
        return True

    def _trickle(self, data: bytes, rate: float) -> None:
        """Send so many bytes a second, at most 20 times; what is left at once on `stop`."""
        size = max(1, int(rate / 20))
        for start in range(0, len(data), size):
            self.connection.sendall(data[start : start + size])
            if start + size < len(data):
                self.server.fake.ending.wait(size / rate)

    def _break_off(self, fault: Fault, data: bytes) -> None:
        """End the connection without a whole answer."""
        self.broken, framer = True, self.request.framer
        framer.keep_alive, framer.buffer = False, b""
        self.request.ready = None  # so that `stop` need not wait for it
        if fault.effect == "reset":
            linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        if fault.effect == "hang":
            self.connection.settimeout(None)
            while self.connection.recv(65536):
                pass
            return
        if fault.effect == "truncate":
            self.connection.sendall(data[: data.find(b"\r\n\r\n") + 4 + fault.rule["truncate"]])
        self._linger()

    def _next_request(self) -> Optional[Request]:
        connection = self.request
        if connection.ready is not None:
            return connection.ready
        while True:
            request = connection.ready = connection.framer.next()
            if request is not None:
                return request
            if connection.framer.wants_continue():
                self.connection.sendall(_CONTINUE)
            data = self._receive()
            if not data:
                return None
            if connection.framer.feed(data):
                connection.since = time.monotonic()

    def _receive(self) -> bytes:
        """What comes in; nothing at the end or after a long silence. Raises ApiError 408."""
        idle, settings = self.request.framer.idle, self.server.settings
        left = settings.idle_timeout
        if not idle:  # the time is for the whole request, so that sending in drips won't help
            left = self.request.since + settings.read_timeout - time.monotonic()
        with contextlib.suppress(socket.timeout):
            if left > 0:
                self.connection.settimeout(left)
                return bytes(self.connection.recv(65536))
        if idle:
            return b""
        raise ApiError(408, "the request did not arrive in time")

    def _linger(self) -> None:
        """Throw away what still comes in, so that the client sees the answer, not a reset."""
        self.connection.settimeout(LINGER)
        self.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LINGER
        while time.monotonic() < deadline and self.connection.recv(65536):
            pass

    def finish(self) -> None:
        """Say over TLS that no more will come (RFC 9112 9.8), without waiting for the like."""
        if self.request.framer.scheme == "https" and not self.broken:
            with contextlib.suppress(OSError, ValueError):
                self.connection.settimeout(0)
                cast("ssl.SSLSocket", self.connection).unwrap()


# ---- TLS


def make_tls_context(settings: Settings) -> ssl.SSLContext:
    """A server context with the configured certificate, or the built-in one. Raises OSError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    if settings.cert:
        try:
            context.load_cert_chain(settings.cert, settings.key)
        except OSError as error:
            files = f"{settings.cert} and {settings.key}"
            raise OSError(error.errno, f"can't use {files}: {error.strerror}") from None
    else:
        _load_built_in(context)
    return context


def _load_built_in(context: ssl.SSLContext) -> None:
    """`load_cert_chain` takes files only; memory files where there are any, for read-only roots."""
    import tempfile

    pem = (_pem("CERTIFICATE", "certificate") + _pem("PRIVATE KEY", "key")).encode()
    missing = contextlib.suppress(OSError, AttributeError)  # no such call, or no /proc
    with missing, open(os.memfd_create("customerio_fake"), "wb", 0) as memory:
        memory.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{memory.fileno()}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "built-in.pem")
        with open(path, "wb") as file:
            file.write(pem)
        context.load_cert_chain(path)


# ======================================================================================
# ==== §27 Beside the real service
# ======================================================================================

#: The hosts of the App API (reference), its limit of requests a second, and how patient we are.
APP_URLS = {"us": "https://api.customer.io", "eu": "https://api-eu.customer.io"}
PULL_RATE = 10
PULL_TRIES = 8
PULL_TIMEOUT = 30


class Unreadable(ValueError):
    """The workspace can't be read; the text says why, and what to do."""


class Elsewhere:
    """The App API of a workspace that isn't ours: read slowly and patiently, never written to.

    `say` takes a line about what is going on, `wait` passes seconds.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        say: Callable[[str], None],
        wait: Callable[[float], Any] = time.sleep,
    ) -> None:
        self.base_url, self.key, self.say, self.wait = base_url.rstrip("/"), key, say, wait
        self._last = 0.0

    def get(self, path: str, **query: Any) -> Json:
        """What a GET answers, None for a 404. Raises Unreadable."""
        target = f"{path}?{urlencode(query)}" if query else path
        problem = ""
        for attempt in range(PULL_TRIES):
            self._take_turn()
            status, headers, body = self._asked(target)
            if status == 404:
                return None
            if status == 200:
                try:
                    return decode_json(body)
                except ApiError as error:
                    raise Unreadable(f"GET {path} answers no JSON: {error.message}") from None
            problem = f"{status or 'no answer'}: {body.decode('utf-8', 'replace')[:200]}"
            if 0 < status < 500 and status != 429:
                break
            seconds = float(headers.get("retry-after") or min(2.0**attempt, PULL_TIMEOUT))
            self.say(f"GET {path}: {problem}; again in {seconds:g} s")
            self.wait(seconds)
        hint = "; is this the App API key of that region?" if problem[:3] == "401" else ""
        raise Unreadable(f"GET {path} at {self.base_url}: {problem}{hint}")

    def _take_turn(self) -> None:
        self.wait(max(0.0, self._last + 1 / PULL_RATE - time.monotonic()))
        self._last = time.monotonic()

    def _asked(self, target: str) -> Tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one request; without an answer 0, nothing, and why."""
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import Request as Get
        from urllib.request import urlopen

        headers = {"Authorization": f"Bearer {self.key}", "User-Agent": f"{__name__}/{__version__}"}
        try:
            with urlopen(Get(self.base_url + target, headers=headers), timeout=PULL_TIMEOUT) as got:
                return 200, {}, got.read()
        except HTTPError as error:
            with error:
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()
        except (OSError, HTTPException, ValueError) as error:
            return 0, {}, str(error).encode()

    def rows(self, path: str, key: str) -> Iterator[Json]:
        """All rows of a list, page after page."""
        start, page, query = "", 1, cast(Json, {})
        while True:
            answer = self.get(path, **query) or {}
            found = answer.get(key) or []
            yield from found
            start, pages = answer.get("next") or "", (answer.get("meta") or {}).get("pagination")
            if start:
                query = {"start": start}
            elif pages and found and page * pages["limit"] < pages["total"]:
                page += 1
                query = {"page": page}
            else:
                return


class Pulled(NamedTuple):
    """A kind of thing that can be pulled: where it is listed, and how a row of it is completed."""

    path: str
    key: str
    complete: Callable[[Elsewhere, str, Json], Json] = lambda api, path, row: row
    #: What the API does not tell of a row, to be added by hand; "" if it tells all.
    untold: Callable[[Json], str] = lambda row: ""


def _with(**lists: str) -> Callable[[Elsewhere, str, Json], Json]:
    """Completes a row with lists that have paths of their own, below that of the row."""

    def complete(api: Elsewhere, path: str, row: Json) -> Json:
        own = f"{path}/{quote(as_text(row['id']))}"
        more = {name: list(api.rows(f"{own}/{part}", name)) for name, part in lists.items()}
        return {**row, **more}

    return complete


def _with_content(api: Elsewhere, path: str, row: Json) -> Json:
    return {**row, "content": api.get(f"{path}/{row['id']}/content") or []}


def _in_full(one: str, **lists: str) -> Callable[[Elsewhere, str, Json], Json]:
    """Completes a row of a list that leaves things out by the thing itself, and lists below it."""

    def complete(api: Elsewhere, path: str, row: Json) -> Json:
        full = (api.get(f"{path}/{row['id']}") or {}).get(one) or row
        return {**row, **_with(**lists)(api, path, full)}

    return complete


def _without_secret(api: Elsewhere, path: str, row: Json) -> Json:
    return {**row, "endpoint": re.sub(r"//[^/@]*@", "//", as_text(row.get("endpoint") or ""))}


#: What is pulled, and how, in the order of seeds.
PULLED: Dict[str, Pulled] = {
    "workspaces": Pulled("/v1/workspaces", "workspaces"),
    "object_types": Pulled("/v1/object_types", "types"),
    "topics": Pulled("/v1/subscription_topics", "topics"),
    "channels": Pulled("/v1/subscription_channels", "channels"),
    "sender_identities": Pulled("/v1/sender_identities", "sender_identities"),
    "snippets": Pulled("/v1/snippets", "snippets"),
    "collections": Pulled("/v1/collections", "collections", _with_content),
    "segments": Pulled(
        "/v1/segments",
        "segments",
        untold=lambda row: "its conditions" if row.get("type") == "dynamic" else "",
    ),
    "campaigns": Pulled(
        "/v1/campaigns",
        "campaigns",
        _with(actions="actions"),
        lambda row: "its workflow: order, delays and conditions",
    ),
    "broadcasts": Pulled("/v1/broadcasts", "broadcasts", _with(actions="actions")),
    "newsletters": Pulled(
        "/v1/newsletters", "newsletters", _with(contents="contents", test_groups="test_groups")
    ),
    "transactional": Pulled("/v1/transactional", "messages", _with(contents="contents")),
    "reporting_webhooks": Pulled("/v1/reporting_webhooks", "reporting_webhooks", _without_secret),
    "design_studio_folders": Pulled("/v1/design_studio/folders", "folders"),
    "design_studio_components": Pulled(
        "/v1/design_studio/components", "components", _in_full("component")
    ),
    "design_studio_emails": Pulled(
        "/v1/design_studio/emails", "emails", _in_full("email", email_translations="languages")
    ),
    "inbox_preview_clients": Pulled("/v1/design_studio/inbox_previews/clients", "clients"),
    "inbox_preview_credits": Pulled("/v1/design_studio/inbox_previews/credits", "credits"),
}


def _name_of(row: Json) -> Json:
    return row["id"] if "id" in row else row.get("name")


def pull(
    api: Elsewhere,
    seed: Json,
    kinds: Iterable[str] = tuple(PULLED),
    people: Iterable[str] = (),
    keep: Callable[[Json], None] = lambda seed: None,
) -> List[str]:
    """Read a workspace into a seed document; gives what has to be added by hand, in lines.

    What the document has already is not read again, so a pull that broke off goes on. `keep` is
    given the document after each kind, and when it breaks off. Raises Unreadable.
    """
    notes: List[str] = []
    try:
        for kind in kinds:
            notes += _pull_kind(api, seed, kind)
            keep(seed)
        for person in people:
            _pull_person(api, seed, person)
    finally:
        keep(seed)
    return notes


def _pull_kind(api: Elsewhere, seed: Json, kind: str) -> Iterator[str]:
    pulled, rows = PULLED[kind], seed.setdefault(kind, [])
    known = {_name_of(row) for row in rows}
    for row in api.rows(pulled.path, pulled.key):
        if _name_of(row) not in known:
            rows.append(pulled.complete(api, pulled.path, row))
    api.say(f"{kind}: {len(rows)}")
    for row in rows:
        if pulled.untold(row):
            yield f"{kind} {_name_of(row)} ({row.get('name')}): {pulled.untold(row)}"


def _pull_person(api: Elsewhere, seed: Json, person: str) -> None:
    """Read a person with devices, manual segments and objects into a seed. Raises Unreadable."""
    path = f"/v1/customers/{quote(person, safe='')}"
    kind = "?id_type=email" if "@" in person else ""
    answer = api.get(f"{path}/attributes{kind}")
    if answer is None:
        raise Unreadable(f"there is no person '{person}' at {api.base_url}")
    row, people = answer["customer"], seed.setdefault("customers", [])
    mine = row["identifiers"]
    people[:] = [other for other in people if other.get("identifiers") != mine]
    people.append(row)
    numbers = {s["id"] for s in (api.get(f"{path}/segments{kind}") or {}).get("segments") or ()}
    for segment in seed.get("segments", ()):
        if segment["id"] in numbers and segment.get("type") == "manual":
            name = "ids" if row["id"] else "emails"
            segment[name] = sorted({*segment.get(name, ()), row["id"] or mine["email"]})
    api.say(f"customers: {person}")


# ======================================================================================
# ==== §28 Public face
# ======================================================================================


OtherLists = Literal[
    "customers", "people", "devices", "objects", "segments", "forms", "suppressed", "broadcasts",
    "journeys", "merges", "batches", "pipeline_events", "pipeline-events", "webhooks", "requests",
    "dropped",
]  # fmt: skip


def links_in(rendered: Json) -> List[str]:
    """Where the links of a message lead, tracked or not."""
    body = rendered.get("body") or ""
    own = [row["href"] for row in rendered.get("links", ())]
    return own or re.findall(r"https?://[^\s\"'<>]+", body)


def _found_in(rendered: Json, what: str, text: str, found: Sequence[str]) -> str:
    fitting = [one for one in found if text in one]
    if not fitting:
        wanted = f" with {text!r} in it" if text else ""
        seen = f"there are {list(found)}" if found else as_text(rendered)[:500]
        raise AssertionError(f"no {what}{wanted} in this message: {seen}")
    return fitting[0]


@functools.cache
def _ca_file(own: str) -> str:
    import atexit
    import tempfile

    if own:
        return own
    number, path = tempfile.mkstemp(suffix=".pem", prefix="customerio-fake-")
    with open(number, "w", encoding="ascii") as file:
        file.write(BUILT_IN_CA)
    atexit.register(os.unlink, path)
    return path


class Failing(int):
    """The id of a rule of what goes wrong; in a `with` it goes right again behind the block."""

    _view: View

    def __new__(cls, view: View, id: int) -> Failing:
        """A rule of a server or workspace."""
        failing = super().__new__(cls, id)
        failing._view = view
        return failing

    def __enter__(self) -> Failing:
        """The rule stands already."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Take the rule away, if it is still there."""
        self._view.fake.faults.remove(str(int(self)))


class View:
    """One workspace for tests: where it is, what was captured, and what steers it."""

    fake: Fake

    # ---- where it is

    @property
    def url(self) -> str:
        """The base URL of everything."""
        raise NotImplementedError

    @property
    def track_url(self) -> str:
        """What the Node TrackClient takes as `url`."""
        return f"{self.url}/api/v1"

    @property
    def app_url(self) -> str:
        """What the Node APIClient takes as `url`."""
        return f"{self.url}/v1"

    @property
    def pipelines_url(self) -> str:
        """What the Node PipelinesClient takes as `url`."""
        return f"{self.url}/v1"

    @property
    def api_url(self) -> str:
        """What the PyPI APIClient takes as `url`: it adds the `/v1` itself."""
        return self.url

    @property
    def ca_file(self) -> str:
        """A file with the certificate that https clients trust; it goes with the process."""
        return _ca_file(self.fake.settings.cert)

    @property
    def environment(self) -> Dict[str, str]:
        """Environment variables for the code under test: URLs, and keys that are accepted."""
        settings = self.fake.settings
        return {
            "CUSTOMERIO_TRACK_URL": self.track_url,
            "CUSTOMERIO_API_URL": self.app_url,
            "CUSTOMERIO_PIPELINES_URL": self.pipelines_url,
            "CUSTOMERIO_SITE_ID": settings.site_id or "fake-site-id",
            "CUSTOMERIO_API_KEY": settings.api_key or "fake-api-key",
            "CUSTOMERIO_APP_KEY": settings.app_key or "fake-app-key",
            "CUSTOMERIO_WRITE_KEY": settings.write_key or "fake-write-key",
            "CUSTOMERIO_SIGNING_KEY": settings.signing_key,
        }

    # ---- what was captured, as plain data, oldest first

    @property
    def people(self) -> List[PersonRecord]:
        """Everybody who is known."""
        return copied_records(self.fake, "customers")

    @property
    def events(self) -> List[EventRecord]:
        """All events of Track: of people, anonymous ones, and push reports."""
        return copied_records(self.fake, "events")

    @property
    def deliveries(self) -> List[DeliveryRecord]:
        """All transactional sends."""
        return copied_records(self.fake, "deliveries")

    @property
    def devices(self) -> List[DeviceRecord]:
        """All push devices."""
        return copied_records(self.fake, "devices")

    @property
    def objects(self) -> List[ObjectRecord]:
        """All objects with their relationships."""
        return copied_records(self.fake, "objects")

    @property
    def journeys(self) -> List[JourneyRecord]:
        """Everybody's ways through campaigns, also those that did not begin, with the reason."""
        return copied_records(self.fake, "journeys")

    @property
    def suppressed(self) -> List[str]:
        """Who is suppressed: ids, or emails of people without id."""
        return cast(List[str], copied_records(self.fake, "suppressed"))

    @property
    def broadcasts(self) -> List[BroadcastRecord]:
        """All broadcast triggers."""
        return copied_records(self.fake, "broadcasts")

    @property
    def merges(self) -> List[MergeRecord]:
        """All merge calls."""
        return copied_records(self.fake, "merges")

    @property
    def batches(self) -> List[BatchRecord]:
        """All batches, of Track v2 and of Pipelines."""
        return copied_records(self.fake, "batches")

    @property
    def pipeline_events(self) -> List[Json]:
        """All Pipelines calls, word for word."""
        return copied_records(self.fake, "pipeline-events")

    @property
    def webhooks(self) -> List[ReportRecord]:
        """Reporting webhooks with their attempts, also those that no endpoint asked for."""
        return copied_records(self.fake, "webhooks")

    def flush_webhooks(self) -> int:
        """Wait until every webhook is sent that can be; returns how many wait for a retry."""
        return self.fake.outbox.flush()

    @property
    def dropped(self) -> List[DroppedRecord]:
        """The calls that were answered with 200 and had no, or not their full, effect."""
        return copied_records(self.fake, "dropped")

    def person(self, identifier: str) -> Optional[PersonRecord]:
        """One person by id or email; None if nobody has it."""
        workspace = self.fake.workspace
        workspace.agenda.tick()
        with workspace.lock:
            find, name = workspace.people.find, as_text(identifier)
            person = find(("id", name)) or find(("email", name))
            return None if person is None else person.record()

    def reset(self, only: str = "") -> None:
        """Forget everything, or `only` "state", "journal", "faults" or "clock"."""
        if only not in ("", "state", *RESETS):
            raise ValueError(f"only must be one of: state, {', '.join(RESETS)}")
        self.fake.reset(only)

    def seed(self, document: Json) -> None:
        """Start afresh with what a seed document describes; later resets return to it.

        Raises ApiError, and changes nothing, if something is wrong with the document.
        """
        self.fake.seed(as_json(document))

    def snapshot(self) -> Json:
        """Everything in this workspace as one JSON document, for `restore`."""
        return json.loads(snapshot(self.fake))

    def restore(self, document: Json) -> None:
        """Make this workspace what a snapshot says; raises ApiError, and changes nothing, or does.

        Later resets return to the seed, not to the snapshot.
        """
        put_in(self.fake, restored(document, self.fake.settings))

    # ---- what goes wrong on purpose

    def fail(self, operation: str = "", **rule: Any) -> Failing:
        """Let requests go wrong; returns the id of the rule. Raises ApiError for a bad one.

        As `with cio.fail(…):` it ends with the block.

        Which: `operation`, `method`, `path`, `person`, `event`; when: `times`, `every`, `after`,
        `probability` with `seed`, `when` ("before" or "after" the write); how: one of `status`
        (with `body`, `retry_after`), `latency` (with `jitter`), `reset`, `empty`, `truncate`,
        `hang`, `trickle`; or `responses`, a list of such, one after the other.

            cio.fail("POST /v1/send/email", times=2, status=503, retry_after=1)
        """
        names = ("method", "path", "person", "event")
        match = {name: rule.pop(name) for name in names if name in rule}
        match.update({"operation": operation} if operation else {})
        return Failing(self, add_fault(self.fake.faults, {"match": match, **rule}).id)

    @property
    def faults(self) -> List[Json]:
        """The rules of what goes wrong, with how often each matched and fired."""
        return self.fake.faults.records()

    def mend(self, id: Optional[int] = None) -> None:
        """Let one rule, or all, go wrong no more. Raises ValueError if there is no such rule."""
        gone = self.fake.faults.remove(None if id is None else str(id))
        if id is not None and not gone:
            raise ValueError(f"there is no fault {id}")

    @property
    def requests(self) -> List[RequestRecord]:
        """The newest requests with their answers, secrets masked."""
        return copied_records(self.fake, "requests")

    # ---- assertions that explain themselves

    # What events and deliveries can be asked for is spelt out: who checks types sees a slip.
    @overload
    def expect(
        self, list: Literal["events"], *,
        exactly: int = ..., at_least: int = ..., at_most: int = ...,
        none: bool = ..., in_order: Sequence[Attributes] = ..., timeout: float = ...,
        id: Any = ..., kind: Any = ..., customer_id: Any = ..., cio_id: Any = ...,
        anonymous_id: Any = ..., name: Any = ..., type: Any = ..., data: Any = ...,
        timestamp: Any = ..., received_at: Any = ...,
    ) -> List[EventRecord]: ...  # fmt: skip

    @overload
    def expect(
        self, list: Literal["deliveries"], *,
        exactly: int = ..., at_least: int = ..., at_most: int = ...,
        none: bool = ..., in_order: Sequence[Attributes] = ..., timeout: float = ...,
        to: Any = ..., subject: Any = ..., body: Any = ..., delivery_id: Any = ...,
        channel: Any = ..., message: Any = ..., customer_id: Any = ..., cio_id: Any = ...,
        recipient: Any = ..., state: Any = ..., failure_message: Any = ..., rendered: Any = ...,
        parents: Any = ..., metrics: Any = ..., history: Any = ..., devices: Any = ...,
        send_at: Any = ..., received_at: Any = ...,
    ) -> List[DeliveryRecord]: ...  # fmt: skip

    @overload
    def expect(self, list: OtherLists, **match: Any) -> List[Any]: ...

    def expect(self, list: str, **match: Any) -> List[Any]:
        """Return the records that are as wanted; raise AssertionError if it isn't as expected.

        `list` is one of the names under `/__parlel`, or of the properties here; `match` are fields
        and what they must be: `data={"plan": "pro"}` wants these parts of an object,
        `recipient={"contains": "x"}` is one of the MATCHERS. How many there must be: at least one,
        or `exactly`, `at_least`, `at_most`, `none=True`; `in_order` has matches that follow each
        other. With a `timeout` (seconds) it returns as soon as it comes true; an upper limit alone
        is watched until then. The error lists the nearest records, a difference in a line.
        """
        timeout = match.pop("timeout", 0)
        given = {name: match.pop(name) for name in _AMOUNTS if match.get(name) is not None}
        list = {"people": "customers"}.get(list, list.replace("_", "-"))
        # As over HTTP, so that enumerations, tuples and the like are what JSON makes of them.
        __tracebackhide__ = True  # so that pytest shows the test, not this
        asked = as_json({"list": list, "match": match, **given})
        problem, found = expect(self.fake, expectation_of(asked)[0], timeout)
        if problem:
            raise AssertionError(problem)
        return copy_of(found)

    def latest(self, list: str, **match: Any) -> Any:
        """The newest record with these fields; raises AssertionError if there is none."""
        __tracebackhide__ = True
        return self.expect(cast(OtherLists, list), **match)[-1]

    def assert_event(self, name: str, **match: Any) -> List[EventRecord]:
        """Raise AssertionError unless there is an event of this name, with these fields."""
        __tracebackhide__ = True
        return self.expect("events", name=name, **match)

    def wait_for_event(self, name: str, timeout: float = 5, **match: Any) -> EventRecord:
        """Wait for an event of this name, with these fields, and return the first one."""
        __tracebackhide__ = True
        return self.expect("events", timeout=timeout, name=name, **match)[0]

    def assert_delivery(self, **match: Any) -> List[DeliveryRecord]:
        """Raise AssertionError unless there is a delivery with these fields."""
        __tracebackhide__ = True
        return self.expect("deliveries", **match)

    def wait_for_delivery(self, timeout: float = 5, **match: Any) -> DeliveryRecord:
        """Wait for a delivery with these fields and return the first one."""
        __tracebackhide__ = True
        return self.expect("deliveries", timeout=timeout, **match)[0]

    def assert_no_deliveries(self, timeout: float = 0, **match: Any) -> None:
        """Raise AssertionError if there is, or within `timeout` seconds comes, such a delivery."""
        __tracebackhide__ = True
        self.expect("deliveries", exactly=0, timeout=timeout, **match)

    def link(self, text: str = "", **match: Any) -> str:
        """A link in the newest delivery with these fields: the first that has `text` in it.

        Raises AssertionError if there is none.
        """
        __tracebackhide__ = True
        rendered = self.expect("deliveries", **match)[-1]["rendered"]
        return _found_in(rendered, "link", text, links_in(rendered))

    def code(self, **match: Any) -> str:
        """The one-time code in the newest delivery with these fields: four to ten digits.

        Raises AssertionError if there is none.
        """
        __tracebackhide__ = True
        rendered = self.expect("deliveries", **match)[-1]["rendered"]
        text = rendered.get("body_plain") or plain_text(rendered.get("body") or "")
        return _found_in(rendered, "code", "", re.findall(r"(?<![\w#.-])\d{4,10}(?![\w.-])", text))

    @property
    def clock(self) -> FakeClock:
        """The fake's clock: freeze it, move it."""
        return FakeClock(self.fake)


#: Hosts that mean every address, and one to ask at.
_ALL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
#: What a port that can't be had gives.
_PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)


class CustomerioServer(View):
    """A fake Customer.io on a port of its own.

    `port` 0 takes a free one; `seed` is a seed document or the path of one; `settings` are the
    fields of Settings. Use it as a context manager, or call `start` and `stop`; it can be
    started again, and keeps what it recorded until `reset`. Raises ValueError for a setting
    that can't be, ApiError for a seed or state that can't be.

        with CustomerioServer(port=0) as cio:
            client = TrackClient(site_id, api_key, url=cio.track_url)
    """

    def __init__(
        self, port: int = 4668, host: str = "127.0.0.1", seed: Json = None, **settings: Any
    ) -> None:
        names = {setting.name for setting in fields(Settings)}
        unknown = sorted(set(settings) - names)
        if unknown:
            known = ", ".join(sorted(names))
            raise ValueError(f"there is no setting '{unknown[0]}'; there are {known}")
        path = seed if isinstance(seed, str) else ""
        self.settings = Settings(port=port, host=host, seed=path, **settings)
        self._seed = read_json(path) if path else as_json(seed)
        try:
            self.fake = Fake(self.settings, self._seed)
        except ApiError as error:
            place = f"seed {path}".strip()
            raise invalid(f"{place}: {error.message}", "seed") from None
        if self.settings.state:
            load(self.fake, self.settings.state)
        self._server: Optional[Server] = None
        self._thread: Optional[threading.Thread] = None

    def start(self) -> CustomerioServer:
        """Listen and answer in the background; returns once the socket listens.

        Raises OSError if the port is taken, RuntimeError if this server runs already.
        """
        if self._server is not None:
            raise RuntimeError("this server runs already; stop it first")
        try:
            server = self._server = Server(self.settings, self.fake)
        except OSError as error:
            place = f"{self.settings.host}:{self.settings.port}"
            hint = "; port=0 takes a free one" if error.errno in _PORT_ERRORS else ""
            raise OSError(error.errno, f"can't listen on {place}: {error.strerror}{hint}") from None
        self.fake.listens = self.url
        self.fake.open()
        thread = threading.Thread(target=server.serve_forever, name="customerio-fake", daemon=True)
        self._thread = thread
        thread.start()
        return self

    def stop(self) -> None:
        """Let requests in flight finish, free port, sockets and threads, and save the state.

        Raises OSError if there is a file for the state and it can't be written.
        """
        server, thread = self._server, self._thread
        if server is None or thread is None or server.foreign:
            return
        server.shutdown()
        thread.join()
        server.server_close()
        try:
            if self.settings.state:
                save(self.fake, self.settings.state)
        finally:
            self.fake.close()
            self._server = self._thread = None

    def __enter__(self) -> CustomerioServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # ---- where it is

    @property
    def port(self) -> int:
        """The port; after `start` the real one, also where 0 was asked for."""
        return self.settings.port if self._server is None else int(self._server.server_port)

    @property
    def url(self) -> str:
        """The base URL of everything, for clients on this machine."""
        host = _ALL_ADDRESSES.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def workspace(self, name: str = "", seed: Json = None) -> FurtherWorkspace:
        """Make a workspace with keys of its own, whose calls see nothing of the others.

        Raises ApiError 409 if there is one of this name, 400 for a bad name or seed.
        """
        wrong = _WORKSPACE_NAME.wrong(name) if name else ""
        if wrong:
            raise invalid(f"name {wrong}", "name")
        return FurtherWorkspace(self, self.fake.add(name, as_json(seed)))

    def renew(self) -> None:
        """Be as new: without further workspaces, and with the first seed; so a test begins."""
        for name in list(self.fake.others):
            self.fake.remove(name)
        self.fake.seed(self._seed)


class FurtherWorkspace(View):
    """A workspace beside the default one; `environment` has its keys.

    Drop it with `close`, or use it as a context manager; it can't be used after that.
    """

    def __init__(self, server: CustomerioServer, fake: Fake) -> None:
        self._fake, self._server = fake, server
        self.name = fake.name

    @property
    def fake(self) -> Fake:  # type: ignore[override]
        """What it is a view of. Raises RuntimeError once that has been dropped."""
        if self._server.fake.others.get(self.name) is not self._fake:
            raise RuntimeError(f"the workspace '{self.name}' has been dropped")
        return self._fake

    def __enter__(self) -> FurtherWorkspace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The base URL; that of the server would do, as the keys say whose a call is."""
        return f"{self._server.url}/@{self.name}"

    def close(self) -> None:
        """Let go of all that it holds; its keys are unknown again. More than once does no harm."""
        if self._server.fake.others.get(self.name) is self._fake:
            self._server.fake.remove(self.name)


class FakeClock:
    """The clock of a fake. Times are Unix seconds; what is none raises ApiError."""

    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    @property
    def now(self) -> float:
        """What it shows."""
        return self._fake.workspace.clock.now()

    def freeze(self, at: Optional[float] = None) -> None:
        """Stop it, now or at a time."""
        given = {"freeze": True} if at is None else {"freeze": True, "now": at}
        set_clock_to(self._fake, **CLOCK_FIELDS.read(given))

    def resume(self) -> None:
        """Let it go on from where it stands."""
        set_clock_to(self._fake, freeze=False)

    def advance(self, seconds: float) -> None:
        """Move it forward; returns when what became due has been done, in order."""
        set_clock_to(self._fake, **CLOCK_FIELDS.read({"advance": seconds}))


class CustomerioTests:
    """A mix-in for unittest: a server for the class as `self.cio`, fresh for each test.

    The environment of each test holds the variables of `CustomerioServer.environment`, so that
    code which reads its settings there finds the fake. `seed` is the seed document.

        class SignUp(CustomerioTests, unittest.TestCase):
            def test_it(self):
                sign_up("ada@example.com")
                self.cio.assert_event("signup")
    """

    seed: Json = None
    cio: CustomerioServer

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server; it stops after the last test, whatever goes wrong."""
        cls.cio = CustomerioServer(port=0, seed=cls.seed).start()
        cast(Any, cls).addClassCleanup(cls.cio.stop)
        getattr(super(), "setUpClass", lambda: None)()

    def setUp(self) -> None:
        """Forget what earlier tests did, and patch the environment for this one."""
        from unittest import mock

        self.cio.renew()
        environ = mock.patch.dict(os.environ, self.cio.environment)
        environ.start()
        cast(Any, self).addCleanup(environ.stop)
        getattr(super(), "setUp", lambda: None)()


def pytest_configure(config: Any) -> None:
    """Make the marker known that gives a test a seed of its own."""
    config.addinivalue_line("markers", "customerio(seed=None): begin with this seed document")


def _customerio_server() -> Iterator[CustomerioServer]:
    """A server for all tests of this process."""
    with CustomerioServer(port=0) as server:
        yield server


def _customerio(
    customerio_server: CustomerioServer, monkeypatch: Any, request: Any
) -> Iterator[CustomerioServer]:
    """The server, empty or as `@pytest.mark.customerio(seed=…)` says, in the environment."""
    marker = request.node.get_closest_marker("customerio")
    customerio_server.renew()
    if marker:
        customerio_server.seed(marker.kwargs.get("seed") or {})
    for name, value in customerio_server.environment.items():
        monkeypatch.setenv(name, value)
    yield customerio_server


if "pytest" in sys.modules:
    # With `pytest_plugins = ["customerio_fake"]` in conftest.py a test may ask for `customerio`, or
    # `cio` where it imports a package of that name. Each worker of pytest-xdist has a process, and
    # so a server, of its own. Not imported, so that types can be checked where pytest isn't.
    _fixture = sys.modules["pytest"].fixture
    customerio_server = _fixture(scope="session")(_customerio_server)
    customerio, cio = _fixture()(_customerio), _fixture(name="cio")(_customerio)


# ---- command line


def environment_name(setting: Any) -> str:
    """The environment variable of a setting (a field of Settings)."""
    return str(setting.metadata["env"] or f"CUSTOMERIO_FAKE_{setting.name.upper()}")


def _plain_parser(name: str, **options: Any) -> Any:
    """An argparse parser whose complaints are one line."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"customerio_fake: {message}; see --help\n")

    return Parser(prog=f"customerio_fake.py{name}", allow_abbrev=False, **options)


def _parser(name: str = "") -> Any:
    parser = _plain_parser(
        name,
        description="A local Customer.io for tests: Track, App and Pipelines API on one port.",
        epilog="Other things to do: " + ", ".join(COMMANDS) + "; each has a --help of its own.",
    )
    parser.add_argument("what", nargs="*", metavar="PORT", help="port to listen on")
    parser.add_argument("--version", action="version", version=f"customerio_fake {__version__}")
    noise = parser.add_mutually_exclusive_group()
    for name, text in _NOISE.items():
        note = f"{text} [${_noise_variable(name)}, default False]"
        noise.add_argument(f"--{name}", action="store_true", help=note)
    for setting in fields(Settings):
        name, default = setting.name, setting.default
        note = f"{setting.metadata['help']} [${environment_name(setting)}, default {default!r}]"
        kind: Json = {"action": "store_const", "const": "true"} if default is False else {}
        parser.add_argument(f"--{name.replace('_', '-')}", help=note, **kind)
    return parser


_NOISE = {
    "quiet": "after the start, say nothing but errors",
    "verbose": "one line for each request",
}


def _noise_variable(name: str) -> str:
    return f"CUSTOMERIO_FAKE_{name.upper()}"


def _level(arguments: Any, environment: Mapping[str, str]) -> int:
    """What is worth a line: by the flags, else the environment. Raises ValueError."""
    on = {name: getattr(arguments, name) for name in _NOISE}
    if not any(on.values()):
        texts = {name: environment.get(_noise_variable(name)) or "false" for name in _NOISE}
        on = {n: _converted(bool, text, f"${_noise_variable(n)}") for n, text in texts.items()}
    return logging.INFO if on["verbose"] else logging.ERROR if on["quiet"] else logging.WARNING


def _converted(kind: type, text: str, source: str) -> Json:
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        return kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{source} must be {wanted}, not {text!r}") from None


def _settings(arguments: Any, environment: Mapping[str, str]) -> Settings:
    """Settings from flags, else the environment, else the defaults. Raises ValueError."""
    ports = arguments.what
    if len(ports) > 1:
        raise ValueError(f"one port is enough, not {' '.join(ports)}")
    if ports and not ports[0].isdigit() and (near := spelt_alike(ports[0], COMMANDS, 2)):
        raise ValueError(f"there is no {ports[0]!r:.40}; did you mean {' or '.join(near)}?")
    given = {"port": ports[0] if ports else None}
    values = {}
    for setting in fields(Settings):
        flag = given.get(setting.name) or getattr(arguments, setting.name, None)
        variable = environment_name(setting)
        if flag is not None:
            source = "PORT" if setting.name == "port" else f"--{setting.name.replace('_', '-')}"
            values[setting.name] = _converted(type(setting.default), flag, source)
        elif environment.get(variable):
            text, kind = environment[variable], type(setting.default)
            values[setting.name] = _converted(kind, text, f"${variable}")
    return Settings(**values)


# ---- what else the command line can do


class Command(NamedTuple):
    """Something to do beside serving: what it is for, its arguments (as argparse takes them)."""

    run: Callable[[Any], int]
    help: str
    arguments: Mapping[str, Mapping[str, Any]]
    #: Whether it takes the port and flags of the server, too.
    settings: bool = False


def _run_command(name: str, words: Sequence[str]) -> int:
    command = COMMANDS[name]
    parser = (_parser if command.settings else _plain_parser)(f" {name}")
    parser.description = command.help
    for argument, options in command.arguments.items():
        parser.add_argument(argument, **options)
    try:
        return command.run(parser.parse_intermixed_args(words))
    except (ApiError, ValueError, OSError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        return 130


def _healthcheck(arguments: Any) -> int:
    """0 once a server with these settings is well, within the time to wait; else 1."""
    settings, end = _settings(arguments, os.environ), time.monotonic() + arguments.wait
    host = _ALL_ADDRESSES.get(settings.host, settings.host)
    while True:
        problem = _ill(host, settings.port)
        if not problem:
            return 0
        if time.monotonic() >= end:
            by_surprise = os.environ.get("PORT") and not arguments.what
            print(problem + " (the port is $PORT)" * bool(by_surprise), file=sys.stderr)
            return 1
        time.sleep(0.1)


def _ill(host: str, port: int) -> str:
    """Why no fake is well at an address; "" if one is."""
    import http.client

    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=2)) as asked:
            asked.request("GET", "/health")
            if compact({"status": "ok"}) in asked.getresponse().read(1000):
                return ""
        return f"what answers at {host}:{port} is not the fake"
    except (OSError, ValueError, http.client.HTTPException) as error:  # Unicode in a host, too
        return f"no healthy server at {host}:{port}: {error}"


def _print_routes(arguments: Any) -> int:
    word = arguments.word.lower()
    lines = [f"{row.method:6} {row.path}  {row.summary}" for row in ROUTES]
    found = [line for line in lines if word in line.lower()]
    print("\n".join(found) or f"no operation has {word!r} in it")
    return 0 if found else 1


def _asked(url: str, body: Json = None, headers: Mapping[str, str] = {}) -> Json:
    """What a running fake answers to a GET, or to a POST of a body. Raises ValueError."""
    from urllib.error import HTTPError
    from urllib.request import Request as Get
    from urllib.request import urlopen

    data = None if body is None else compact(body)
    try:
        with urlopen(Get(url, data, {"Content-Type": "application/json", **headers})) as answer:
            return decode_json(answer.read())
    except HTTPError as error:
        with error:
            raise ValueError(error.read().decode("utf-8", "replace").strip()) from None
    except OSError as error:
        raise ValueError(f"no fake answers at {url}: {getattr(error, 'reason', error)}") from None


def _send_event(arguments: Any) -> int:
    data = decode_json(arguments.data.encode())
    path = f"/api/v1/customers/{quote(arguments.person, safe='')}/events"
    headers = {"Authorization": f"Basic {_ANY_KEY}"}
    _asked(arguments.url + path, {"name": arguments.name, "data": data}, headers)
    return 0


def _tail(arguments: Any) -> int:
    base = f"{arguments.url}/@{arguments.workspace}" if arguments.workspace else arguments.url
    last, number = _asked(f"{base}/__parlel/requests?limit=1&order=newest")["requests"], 0
    since = last[0]["id"] if last else 0
    print(f"what happens at {base}:", file=sys.stderr, flush=True)
    while True:
        for row in _asked(f"{base}/__parlel/requests?since={since}")["requests"]:
            since = row["id"]
            print(_tail_line(row), flush=True)
        number = _asked(f"{base}/__parlel/changes?since={number}&timeout=25")["number"]


def _tail_line(row: RequestRecord) -> str:
    about = "  ".join(filter(None, (row["person"], *row["events"], row["workspace"])))
    took = f"{row['duration_ms']:7.1f} ms"
    line = f"{time.strftime('%H:%M:%S')}  {row['status']}  {took}  {row['method']} {row['path']}"
    told = row["reason"] or (row["response"] if row["status"] >= 400 else "")
    return "  ".join(filter(None, (line, about, as_text(told)[:200])))


def _print_client(arguments: Any) -> int:
    print(js_types() if arguments.types else JS_CLIENT, end="")
    return 0


def _kinds_wanted(arguments: Any) -> List[str]:
    """What a pull is about. Raises ValueError for a kind that there is not."""
    for kind in (*arguments.only, *arguments.without):
        if kind not in PULLED:
            raise ValueError(
                f"there is no kind {kind!r:.40} to pull; {suggestion(kind, list(PULLED))}"
            )
    return [kind for kind in arguments.only or PULLED if kind not in arguments.without]


def _pull(arguments: Any) -> int:
    """Read a workspace of the real service into a seed, on standard output or into a file."""
    key = arguments.app_key or os.environ.get("CUSTOMERIO_APP_KEY", "")
    if not key:
        raise ValueError("pull needs a key of the App API: --app-key KEY or $CUSTOMERIO_APP_KEY")
    kinds, path, say = (
        _kinds_wanted(arguments),
        arguments.into,
        functools.partial(print, file=sys.stderr),
    )
    seed = read_json(path) if path and os.path.exists(path) else {}
    api = Elsewhere(arguments.source or APP_URLS[arguments.region], key, say)
    keep = functools.partial(_write_whole, path) if path else lambda seed: None
    notes = pull(api, seed, kinds, arguments.person, keep)
    if not path:
        print(json.dumps(seed, indent=2, ensure_ascii=False))
    if notes:
        say("The API does not tell these; add them by hand:", *notes, sep="\n  ")
    return 0


def _write_whole(path: str, seed: Json) -> None:
    text = json.dumps(seed, indent=2, ensure_ascii=False) + "\n"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


_MANY: Json = {"action": "append", "default": []}
_WHERE: Json = {
    "--url": {"default": "http://127.0.0.1:4668", "help": "where the fake is [%(default)s]"}
}
#: What the command line can do beside serving.
COMMANDS: Dict[str, Command] = {
    "healthcheck": Command(
        _healthcheck,
        "Exit with 0 if a server with these settings answers, else with 1.",
        {
            "--wait": {
                "type": float,
                "default": 0.0,
                "metavar": "SECONDS",
                "help": "until it does",
            },
        },
        settings=True,
    ),
    "routes": Command(
        _print_routes,
        "List the operations that the fake answers.",
        {"word": {"nargs": "?", "default": "", "help": "only those with this word in them"}},
    ),
    "send-event": Command(
        _send_event,
        "Track an event, as an app would.",
        {
            "name": {"help": "what happened"},
            "--person": {"default": "1", "metavar": "ID", "help": "to whom [1]"},
            "--data": {"default": "{}", "metavar": "JSON", "help": "the event's data"},
            **_WHERE,
        },
    ),
    "tail": Command(
        _tail,
        "Show what happens, request by request, until Ctrl-C.",
        {"--workspace": {"default": "", "metavar": "NAME", "help": "of this workspace"}, **_WHERE},
    ),
    "client": Command(
        _print_client,
        "Print the client for JavaScript, one file without dependencies.",
        {"--types": {"action": "store_true", "help": "its types, for a .d.ts file, instead"}},
    ),
    "pull": Command(
        _pull,
        "Read a workspace of the real service into a seed; nothing is ever written there.",
        {
            "--app-key": {"help": "key of the App API [$CUSTOMERIO_APP_KEY]"},
            "--region": {"choices": list(APP_URLS), "default": "us", "help": "data centre"},
            "--from": {"dest": "source", "metavar": "URL", "help": "another host of the App API"},
            "--into": {"metavar": "FILE", "help": "write there; if it is there, go on with it"},
            "--person": {**_MANY, "metavar": "ID", "help": "a person to read, too; may repeat"},
            "--only": {**_MANY, "metavar": "KIND", "help": "this kind only; may repeat"},
            "--without": {**_MANY, "metavar": "KIND", "help": "not this kind; may repeat"},
        },
    ),
}


_READY = """customerio_fake {version} listens on {url}
  Track      {track}
  App        {app}
  Pipelines  {pipelines}
  https works on the same port; trust {url}/__parlel/ca.pem
  Reporting webhooks are signed with the key {key}
See what arrives: curl {url}/__parlel/events   Stop: Ctrl-C"""


def _serve(server: CustomerioServer) -> Callable[[], int]:
    """Start; gives what waits for SIGTERM or Ctrl-C, stops, and tells the exit code."""
    import gc
    import signal

    # What is recorded stays, so looking through all of it for garbage again and again would only
    # make requests wait: 40 ms with 100,000 events. A reset frees by counting references.
    if hasattr(gc, "freeze"):  # not on PyPy
        gc.freeze()
        gc.set_threshold(5_000, 500, 1000)

    # The interpreter's own handler writes a byte here. A Python handler could not wake us if the
    # signal came just before we wait: it would run only once the wait is over.
    alarm, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):  # the last is what Windows has for the first
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    try:
        server.start()
    except OSError:
        alarm.close()
        waker.close()
        raise
    urls = {"track": server.track_url, "app": server.app_url, "pipelines": server.pipelines_url}
    urls["key"] = server.settings.signing_key
    ready = _READY.format(version=__version__, url=server.url, **urls)
    if log.isEnabledFor(logging.WARNING):
        print(ready, flush=True)
    elif not server.settings.port:  # who asks for a free one has to learn which
        print(ready.partition("\n")[0], flush=True)
    return functools.partial(_end, server, alarm, waker)


def _end(server: CustomerioServer, alarm: socket.socket, waker: socket.socket) -> int:
    import gc

    with alarm, waker:
        alarm.recv(1)
        try:
            server.stop()
        except OSError as error:
            return _failed(error)
    # All of it is kept until the very end: freeing 100,000 people one by one takes a second.
    if hasattr(gc, "freeze"):
        gc.freeze()
    return 0


def _failed(error: Exception) -> int:
    text = getattr(error, "strerror", None) or error  # without the number of the error
    print(f"customerio_fake: {text}", file=sys.stderr)
    return 2


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit code: 0, 1 for unhealthy, 2 for bad usage."""
    begun = _begin(argv)
    return begun if isinstance(begun, int) else begun()


def _begin(argv: Optional[Sequence[str]]) -> Union[int, Callable[[], int]]:
    """Do what the command line says; gives the exit code, or what waits for it."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS:
        return _run_command(words[0], words[1:])
    arguments = _parser().parse_intermixed_args(words)
    try:
        settings, level = _settings(arguments, os.environ), _level(arguments, os.environ)
    except ValueError as error:
        return _failed(error)
    logging.basicConfig(format="%(message)s", level=level)
    values = {setting.name: getattr(settings, setting.name) for setting in fields(Settings)}
    try:
        return _serve(CustomerioServer(**{**values, "seed": settings.seed or None}))
    except (ApiError, ValueError, OSError) as error:
        return _failed(error)


def _outlive(end: Callable[[], int]) -> None:
    """Go on when the script's code has ended: CPython keeps its syntax tree, 30 MiB, until then."""
    import traceback

    threading.main_thread().join()
    with contextlib.suppress(Exception):  # no ctypes, or not glibc, which keeps what was freed
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    try:
        code = end()
    except Exception:
        traceback.print_exc()
        code = 1
    if code:  # the interpreter would end with the script's own, 0
        sys.stderr.flush()
        os._exit(code)


def _run_script() -> None:
    begun = _begin(None)
    if isinstance(begun, int) or sys.implementation.name != "cpython":
        sys.exit(begun if isinstance(begun, int) else begun())
    threading.Thread(target=_outlive, args=(begun,), name="customerio-fake-end").start()


if __name__ == "__main__":
    _run_script()
