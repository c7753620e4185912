"""Call every operation of the App API and check what it answers; see README.md."""

from __future__ import annotations

import argparse
import base64
import copy
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple
from urllib.parse import quote, urlencode

import shapes as s
from files import served
from official import Official, specification
from operations import ROWS, UNKNOWN, Json, Row
from pastes import results as pasted
from validation import broken

HERE = Path(__file__).resolve().parent
FLOOR = HERE / "floor.json"
TIMEOUT = 10.0
OPERATIONS = 186

_DAY = 86_400
_BASIC = "Basic " + base64.b64encode(b"site:key").decode()
_BOUNDARY = "conformance-boundary"


class Answer(NamedTuple):
    """What came back."""

    status: int
    kind: str
    body: bytes

    def json(self) -> Json:
        """The body as JSON, None if it is empty. Raises ValueError."""
        return json.loads(self.body) if self.body.strip() else None


class Fake:
    """A running fake."""

    def __init__(self, url: str) -> None:
        """Talk to the fake at a base URL."""
        self.url = url.rstrip("/")

    def call(self, method: str, path: str, kind: str = "", body: Optional[bytes] = None) -> Answer:
        """Make one request, with the credentials that the path wants."""
        headers = {"Authorization": _BASIC if path.startswith("/api/") else "Bearer app-key"}
        if kind:
            headers["Content-Type"] = kind
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return _answer(response.status, response)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error)

    def post(self, path: str, value: Json) -> Answer:
        """Send JSON."""
        return self.call("POST", path, "application/json", json.dumps(value).encode())


def _answer(status: int, response: Any) -> Answer:
    return Answer(status, response.headers.get("Content-Type", ""), response.read())


# ==== What a row stands for


class Unknown(Exception):
    """A row needs something that no row above it could keep."""


class Known:
    """What the names in rows stand for."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        """Start with the times, and where files are."""
        now = int(time.time())
        self._values: Dict[str, Json] = {
            **urls,
            "now": now,
            "hour_ago": now - 3600,
            "yesterday": now - _DAY,
            "tomorrow": now + _DAY,
        }

    def keep(self, name: str, value: Json) -> None:
        """Remember what a name stands for."""
        self._values[name] = value

    def fill(self, value: Json) -> Json:
        """The value with all `$name` replaced. Raises Unknown."""
        if isinstance(value, Mapping):
            return {key: self.fill(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.fill(each) for each in value]
        if not isinstance(value, str) or not re.fullmatch(r"\$\w+", value):
            return value
        if value[1:] not in self._values:
            raise Unknown(f"nothing has given {value}")
        return self._values[value[1:]]


class Request(NamedTuple):
    """A row with all names replaced."""

    row: Row
    ids: Dict[str, Json]
    query: Json
    body: Json
    has_file: bool

    def send(self, fake: Fake) -> Answer:
        """Make the call."""
        path = re.sub(r"\{(\w+)\}", lambda m: quote(str(self.ids[m[1]]), safe=""), self.row.path)
        if self.query:
            path += "?" + urlencode(self.query)
        if self.row.upload:
            kind = f"multipart/form-data; boundary={_BOUNDARY}"
            return fake.call(self.row.method, path, kind, self._multipart())
        if self.body is None:
            return fake.call(self.row.method, path)
        body = json.dumps(self.body).encode()
        return fake.call(self.row.method, path, "application/json", body)

    def _multipart(self) -> bytes:
        name, data = self.row.upload or ("", b"")
        parts = [(f'name="{key}"', str(value).encode()) for key, value in self.body.items()]
        if self.has_file:
            parts.append((f'name="file"; filename="{name}"\r\nContent-Type: image/png', data))
        start = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; "
        chunks = [f"{start}{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts]
        return b"".join(chunks) + f"--{_BOUNDARY}--\r\n".encode()

    def without(self, place: str) -> Request:
        """The same request with one required field left out."""
        if place == "file":
            return self._replace(has_file=False)
        if place in self.query:
            return self._replace(query={k: v for k, v in self.query.items() if k != place})
        body = copy.deepcopy(self.body)
        *way, last = place.split(".")
        parent = _at(body, way)
        del parent[int(last) if isinstance(parent, list) else last]
        return self._replace(body=body)

    def with_unknown(self, name: str) -> Request:
        """The same request with an id that nothing has."""
        return self._replace(ids={**self.ids, name: _unknown_like(self.ids[name])})


def request_of(row: Row, known: Known) -> Request:
    """The request of a row. Raises Unknown."""
    names = re.findall(r"\{(\w+)\}", row.path)
    ids = {name: known.fill(row.ids.get(name, f"${name}")) for name in names}
    return Request(row, ids, known.fill(row.query), known.fill(row.body), True)


def _at(value: Json, way: Sequence[str]) -> Json:
    """What stands at a place. Raises LookupError, TypeError or ValueError if nothing does."""
    for part in way:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def _unknown_like(value: Json) -> Json:
    """An id of the same form that nothing has."""
    forms = (
        (r"\d+", "987654"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "00000000-0000-4000-8000-000000000000"),
        (r"[0-7][0-9A-Z]{25}", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        (r"[a-z]{2}", "xx"),
    )
    for pattern, unknown in forms:
        if re.fullmatch(pattern, str(value)):
            return unknown
    return "nobody-knows-this"


# ==== Judging answers


class Judge:
    """Says what is wrong with an answer."""

    def __init__(self, official: Optional[Official]) -> None:
        """Go by the own shapes, and by the official file if there is one."""
        self._official = official

    def faults(self, row: Row, answer: Answer) -> List[str]:
        """What is wrong with a successful answer."""
        if isinstance(row.answer, s.Image):
            right = answer.kind.startswith("image/") and answer.body
            return [] if right else [f"no picture, but {answer.kind}"]
        try:
            value = answer.json()
        except ValueError:
            return ["the body is not JSON"]
        if row.answer is s.EMPTY:
            return [] if not value else ["the body is not empty"]
        if not answer.kind.startswith("application/json"):
            return [f"no JSON, but {answer.kind}"]
        return [*broken(s.schema_of(row.answer), value), *self._official_faults(row, answer)]

    def _official_faults(self, row: Row, answer: Answer) -> Iterator[str]:
        schema = self._official and self._official.schema(row.method, row.path, answer.status)
        if schema:
            yield from (f"officially: {text}" for text in broken(schema, answer.json()))


def refusal_fault(row: Row, answer: Answer, statuses: Sequence[int]) -> str:
    """What is wrong with a refusal; nothing if it is as it should be."""
    if answer.status not in statuses:
        return f"{answer.status} instead of {' or '.join(map(str, statuses))}"
    try:
        value = answer.json()
    except ValueError:
        return "the body is not JSON"
    sending = row.path.startswith("/v1/send/")
    faults = broken(s.schema_of(s.SEND_REFUSAL if sending else s.REFUSAL), value)
    if not faults and not sending and value["errors"][0]["status"] != str(answer.status):
        faults = [f'errors.0.status is not "{answer.status}"']
    return faults[0] if faults else ""


# ==== The rounds


class Result(NamedTuple):
    """How a row did."""

    row: Row
    answered: bool
    faults: List[str]


def begin(fake: Fake, urls: Mapping[str, str]) -> Known:
    """Reset the fake and load the seed."""
    known = Known(urls)
    seed = json.loads((HERE / "seed.json").read_text(encoding="utf-8"))
    fake.call("POST", "/__parlel/reset")
    answer = fake.post("/__parlel/seed", known.fill(seed))
    if answer.status >= 300:
        _say(f"seeding failed: {answer.status} {answer.body.decode(errors='replace')[:300]}")
    return known


def play(fake: Fake, judge: Judge, row: Row, known: Known) -> Result:
    """Make a row's call and keep what later rows want to know."""
    try:
        answer = request_of(row, known).send(fake)
    except Unknown as error:
        return Result(row, False, [str(error)])
    if answer.status not in row.status:
        wanted = f"{answer.status} instead of {' or '.join(map(str, row.status))}"
        text = answer.body.decode(errors="replace")
        return Result(row, False, [f"{wanted}: {text[:160]}"])
    faults = judge.faults(row, answer)
    for name, place in row.keeps.items():
        try:
            known.keep(name, _at(answer.json(), place.split(".")))
        except (LookupError, TypeError, ValueError):
            faults.append(f"there is no {place}")
    return Result(row, True, faults)


def answers(fake: Fake, judge: Judge, urls: Mapping[str, str]) -> List[Result]:
    """The first round: every row, in order."""
    known = begin(fake, urls)
    return [play(fake, judge, row, known) for row in ROWS if not row.is_refusal]


def refusals(fake: Fake, judge: Judge, urls: Mapping[str, str]) -> List[Result]:
    """The second round: what should be refused, before the row that it is made from."""
    known = begin(fake, urls)
    results = []
    asked: Set[Tuple[str, str]] = set()
    for row in ROWS:
        results += [_refused(fake, row, known, case) for case in cases(row, asked)]
        result = play(fake, judge, row, known)
        if row.is_refusal:
            results.append(result._replace(answered=not result.faults))
    return results


class Case(NamedTuple):
    """One thing wrong about a request."""

    place: str
    is_id: bool
    statuses: Sequence[int]


def cases(row: Row, asked: Set[Tuple[str, str]]) -> Iterator[Case]:
    """What can be wrong about a row's request; ids only once for each operation."""
    if row.is_refusal or not row.since:
        return
    for place in row.needs:
        yield Case(place, False, (400, 422))
    for name in re.findall(r"\{(\w+)\}", row.path):
        statuses = row.unknown.get(name, UNKNOWN.get(name, (404,)))
        if statuses and (row.request, name) not in asked:
            asked.add((row.request, name))
            yield Case(name, True, statuses)


def _refused(fake: Fake, row: Row, known: Known, case: Case) -> Result:
    wrong = f"unknown {case.place}" if case.is_id else f"no {case.place}"
    try:
        request = request_of(row, known)
    except Unknown as error:
        return Result(row, False, [f"{wrong}: {error}"])
    spoil = request.with_unknown if case.is_id else request.without
    fault = refusal_fault(row, spoil(case.place).send(fake), case.statuses)
    return Result(row, not fault, [f"{wrong}: {fault}"] if fault else [])


# ==== The report


def count(rounds: Sequence[List[Result]]) -> Dict[str, int]:
    """The numbers that must not fall."""
    answered, refused = rounds
    operations: Dict[Tuple[str, str], List[Result]] = {}
    for result in answered:
        if result.row.since:
            operations.setdefault((result.row.method, result.row.path), []).append(result)
    if len(operations) != OPERATIONS:
        raise ValueError(f"there are {len(operations)} operations, not {OPERATIONS}")
    groups = list(operations.values())
    return {
        "answered": sum(all(each.answered for each in group) for group in groups),
        "valid": sum(all(each.answered and not each.faults for each in group) for group in groups),
        "refused": sum(result.answered for result in refused),
    }


def report(rounds: Sequence[List[Result]], only: str) -> None:
    """Print what went wrong; refusals only of operations that answer at all."""
    answered, refused = rounds
    silent = {result.row.request for result in answered if not result.answered}
    for result in [*answered, *(each for each in refused if each.row.request not in silent)]:
        line = f"{result.row.name:<36} {result.row.request}"
        if result.faults and only.lower() in line.lower():
            _say(line)
            for fault in result.faults[:6]:
                _say(f"    {fault}")


def survives_a_snapshot(fake: Fake) -> bool:
    """Whether the workspace, with all that the rounds left in it, is the same once restored."""

    def taken() -> Json:
        answer = fake.call("GET", "/__parlel/state")
        return {**json.loads(answer.body), "clock": None}

    before = taken()
    body = fake.call("GET", "/__parlel/state").body
    restored = fake.call("PUT", "/__parlel/state", "application/json", body)
    return restored.status == 200 and taken() == before


def fallen(numbers: Mapping[str, int]) -> List[str]:
    """Which numbers are below the floor."""
    floor = json.loads(FLOOR.read_text(encoding="utf-8"))
    return [
        f"{name}: {numbers[name]}, but it was {least}"
        for name, least in floor.items()
        if name in numbers and numbers[name] < least
    ]


def paste(fake: Fake, file: Path, only: str) -> Dict[str, int]:
    """Paste what the official file says is answered; print what went wrong, give the number."""
    found = list(pasted(fake, file))
    for path, faults in found:
        if faults and only.lower() in path.lower():
            _say(f"pasted from GET {path}")
            for fault in faults[:6]:
                _say(f"    {fault}")
    good = sum(not faults for _, faults in found)
    _say(f"pastes: {good}/{len(found)}")
    return {"pasted": good}


def main() -> int:
    """Run the rounds."""
    options = _options()
    file = specification()
    judge = Judge(Official(file) if file else None)
    fake = Fake(os.environ.get("CUSTOMERIO_FAKE_URL", "http://127.0.0.1:4668"))
    with served() as urls:
        rounds = (answers(fake, judge, urls), refusals(fake, judge, urls))
    numbers = count(rounds)
    report(rounds, options.only)
    if not file:
        _say("The official file is not at hand: only the shapes of shapes.py were checked.")
    valid, total = numbers["valid"], OPERATIONS
    _say(f"operations: {numbers['answered']}/{total} answered, {valid}/{total} valid")
    _say(f"refusals: {numbers['refused']}/{len(rounds[1])}")
    restored = survives_a_snapshot(fake)
    if file:
        numbers.update(paste(fake, file, options.only))
    if options.write:
        FLOOR.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    faults = fallen(numbers) if options.check else []
    if not restored:
        faults.append("snapshot: what is restored differs from what was saved")
    for fault in faults:
        _say(f"FALLEN {fault}")
    return 1 if faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a number fell")
    parser.add_argument("--write", action="store_true", help="store the numbers in floor.json")
    parser.add_argument("--only", default="", help="show the failures of these operations only")
    return parser.parse_args()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
