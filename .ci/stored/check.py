"""Mutated seeds and snapshots: each is refused whole and names its place, or all goes on well.

check.py [--examples N] [--seed S] [--only PART]. Hypothesis draws what to change where in a
document that has something of every kind; of campaigns each value is changed in turn. What is
refused has to name a place in the document and to change nothing. What is accepted has to stand
everything: every GET of the route table, every send, all work that waits, a reset, and a
snapshot's way out and in again.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import re
import sys
import time
from typing import Any, Iterator

import campaigns as journeys
import lived
import world
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from world import NOW, call, filled, ok

import customerio_fake
from customerio_fake import FAMILIES, ROUTES, Fake, Settings

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 7, 1.5, -0.0, 1e300, 10**30, NOW * 1000, 2**63, -(2**63),
    "", "1", "x", "email", "\0", "{{ x", "a@b.cd", "{% for i in x %}", "http://127.0.0.1:abc/",
    [], [None], [1], ["x"], [[]], [{}], {}, {"id": 1}, {"x": None}, {"id": [1]}, {"name": {}},
    {"segment": {"id": 1}}, {"and": []},
]  # fmt: skip

Path = tuple[Any, ...]


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where something stands in a document."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in parts if isinstance(value, (dict, list)) else ():
        yield (*path, name)
        yield from paths(part, (*path, name)) if isinstance(part, (dict, list)) else ()


def at(document: Any, path: Path) -> Any:
    """What stands at a place."""
    for name in path:
        document = document[name]
    return document


def change(document: Any, path: Path, how: str, odd: Any, other: Path) -> None:
    """Mutate a document in place."""
    *way, name = path
    parent = at(document, tuple(way))
    if how == "drop":
        del parent[name]
    elif how == "twice" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[name]))
    elif how == "more" and isinstance(parent[name], dict):
        parent[name]["id" if odd == 7 else "extra"] = odd
    elif how == "more" and isinstance(parent[name], list):
        parent[name].append(odd)
    elif how == "move":
        parent[name] = copy.deepcopy(at(document, other))
    elif how == "wrap":
        parent[name] = [parent[name]]
    else:
        parent[name] = odd


HOW = st.sampled_from(["put", "put", "put", "drop", "more", "more", "move", "twice", "wrap"])
CHANGES = st.lists(
    st.tuples(st.integers(0, 1 << 40), HOW, st.sampled_from(ODD), st.integers(0, 1 << 40)),
    min_size=1,
    max_size=2,
)


def somewhere(document: Any, number: int) -> Path:
    """A place in a document; every part of it is met as often, however long it is."""
    parts: dict[Path, list[Path]] = {}
    for path in paths(document):
        deep = 4 if "shelves" in path else 2
        parts.setdefault(path[:deep], []).append(path)
    if not parts:
        return ()
    number, turn = divmod(number, len(parts))
    inside = list(parts.values())[turn]
    return inside[number % len(inside)]


def mutated(document: Any, changes: list[Any]) -> tuple[Any, list[Any]]:
    """A changed copy of a document, and what was done to it."""
    result, done = copy.deepcopy(document), []
    for number, how, odd, other in changes:
        path, second = somewhere(result, number), somewhere(result, other)
        if path and second:
            change(result, path, how, copy.deepcopy(odd), second)
            done.append((how, ".".join(map(str, path)), odd))
    return result, done


class Log(logging.Handler):
    """Collects errors that went no further."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, with its traceback."""
        self.lines.append(self.format(record))


LOG = Log()
logging.getLogger("customerio_fake").addHandler(LOG)
logging.getLogger("customerio_fake").propagate = False


# ---- every GET


def known(fake: Fake) -> dict[str, list[Any]]:
    """What is there, by what stands before it in paths; further kinds go by their shelf."""
    workspace, shelves = fake.workspace, fake.workspace.shelves
    people = [person.name for person in list(workspace.people)[:4]]
    deliveries, texts = list(workspace.deliveries.rows), ["a@b.cd"]
    groups = list(shelves["test_groups"].rows)
    shelf = {
        "captures": "inbox_preview_clients", "inbox_previews": "ds_previews", "files": "assets",
        "versions": "ds_versions", "emails": "ds_emails", "components": "ds_components",
    }  # fmt: skip
    shelf = {**dict(zip(shelves, shelves)), **shelf}
    return {
        **{part: list(shelves[name].rows) for part, name in shelf.items()},
        **dict.fromkeys(("customers", "subscription_center"), people),
        **dict.fromkeys(("messages", "deliveries", "o", "v", "unsubscribe"), deliveries),
        **dict.fromkeys(("test_group", "test_groups"), groups),
        **dict.fromkeys(("esp_suppression", "search_suppression"), texts),
        "objects": [key[0] for key in workspace.objects.rows],
        "object ids": [key[1] for key in workspace.objects.rows],
        "exports": list(workspace.exports), "segments": list(workspace.segments.rows),
        "triggers": [row.get("id") for row in workspace.broadcasts],
"journeys": [row["id"] for row in ok(fake, "GET", "/__parlel/journeys")["journeys"]],
        "suppression": ["bounces"], "domains": ["b.cd"],
        "requests": [entry.number for entry in fake.journal.rows],
        "language": ["es", "fr"], "languages": ["es"],
    }  # fmt: skip


def keys(there: dict[str, list[Any]], path: str, name: str) -> list[str]:
    """What to put into a path for one of its parameters."""
    part = path.partition("{" + name + "}")[0].rstrip("/").rpartition("/")[2]
    if part in ("actions", "contents"):
        part = FAMILIES[path.split("/")[2]].shelf
    if part == "folders":
        part = "ds_folders" if "studio" in path else "asset_folders"
    part = {"broadcast_id": "broadcasts", "object_id": "object ids"}.get(name, part)
    return [customerio_fake.quote(str(key), safe="") for key in (there.get(part) or ["1"])[:3]]


def filled_paths(there: dict[str, list[Any]], path: str) -> list[str]:
    """A path of the route table with what is there in place of its parameters."""
    ways = [path]
    for name in re.findall(r"{(\w+)}", path):
        ways = [
            way.replace("{" + name + "}", key, 1) for way in ways for key in keys(there, path, name)
        ]
    return ways[:8]


QUERIES = {
    "/metrics": "?steps=3", "/journey_metrics": f"?start={NOW - 9}&end={NOW}&res=days",
    "/v1/messages": f"?end_ts={NOW + 9}", "/v1/customers": "?email=ada@example.com",
}  # fmt: skip


def get_everything(fake: Fake) -> None:
    """Ask every GET of the route table."""
    there = known(fake)
    for operation in ROUTES:
        if operation.method == "GET" and "/e/c/" not in operation.path:
            for path in filled_paths(there, operation.path):
                more = [text for end, text in QUERIES.items() if path.endswith(end)]
                expect(call(fake, "GET", path + "".join(more)), "GET", path)
    body = {"ids": ["ada", "bob", "eve"]}
    expect(call(fake, "POST", "/v1/customers/attributes", body), "POST", "attributes")
    expect(
        call(fake, "POST", "/v1/customers", {"filter": {"segment": {"id": 2}}}), "POST", "search"
    )


def expect(response: Any, *what: Any) -> None:
    """An answer may be anything but a failure of the fake's own."""
    assert response.status < 500, (*what, response.status, response.body[:600])


# ---- every send


def send_everything(fake: Fake) -> None:
    """Send all that can be sent."""
    for channel in ("email", "push", "sms", "whatsapp", "inbox_message", "in_app"):
        for template in [*fake.workspace.shelves["transactional"].rows, 99][:4]:
            body = {"transactional_message_id": template, "identifiers": {"id": "ada"}}
            for to in ({}, {"to": "+15550100" if channel in ("sms", "whatsapp") else "a@b.cd"}):
                expect(call(fake, "POST", f"/v1/send/{channel}", {**body, **to}), channel, body)
    for number in [*fake.workspace.shelves["broadcasts"].rows, 99][:4]:
        for body in ({}, {"ids": ["ada"]}, {"recipients": {"segment": {"id": 1}}}):
            expect(call(fake, "POST", f"/v1/campaigns/{number}/triggers", body), "trigger", number)
    for number in list(fake.workspace.shelves["newsletters"].rows)[:4]:
        for verb, body in (("schedule", {"scheduled_at": NOW + 5000}), ("send", None)):
            expect(call(fake, "POST", f"/v1/newsletters/{number}/{verb}", body), verb, number)
    for name in ("ada", "eve"):
        expect(call(fake, "PUT", f"/api/v1/customers/{name}", {"plan": "x"}), "identify", name)
        event = {"name": "signup", "data": {}}
        expect(call(fake, "POST", f"/api/v1/customers/{name}/events", event), "event", name)
    for node in list(fake.workspace.shelves["ds_emails"].rows)[:2]:
        expect(call(fake, "POST", f"/v1/design_studio/emails/{node}/preview", {}), "preview", node)
        expect(call(fake, "POST", f"/v1/design_studio/emails/{node}/publish"), "publish", node)


def state_of(fake: Fake) -> Any:
    """The state, but for what every request moves."""
    document = ok(fake, "GET", "/__parlel/state")
    del document["clock"]["real"], document["journal"]
    if not document["clock"]["frozen"]:
        del document["clock"]["now"]
    return document


def survive(fake: Fake) -> None:
    """Do all that can be done."""
    LOG.lines.clear()
    get_everything(fake)
    send_everything(fake)
    expect(call(fake, "PUT", "/__parlel/clock", {"advance": 10 * 86400}), "clock")
    get_everything(fake)
    state = state_of(fake)
    whole = ok(fake, "GET", "/__parlel/state")
    response = call(fake, "PUT", "/__parlel/state", whole)
    assert response.status == 200, ("its own snapshot", response.body)
    assert state_of(fake) == state, "another snapshot"
    expect(call(fake, "POST", "/__parlel/reset"), "reset")
    assert call(fake, "GET", "/__parlel/customers").status == 200
    assert not LOG.lines, LOG.lines[:3]


# ---- what is refused


def check_refusal(document: Any, response: Any) -> None:
    """A refusal names a place in the document."""
    assert response.status == 400, (response.status, response.body)
    message = json.loads(response.body)["meta"]["error"]
    # A key may hold anything, so it is looked for as it is.
    roots = [str(key) for key in document] if isinstance(document, dict) else []
    roots += ["state", "seed", "customerio_fake", "clock", "workspace", "people"]
    assert any(message.startswith(root) for root in roots), message
    assert "not fit together" not in message and "would give" not in message, message


def seeds(examples: int, number: int) -> None:
    """Seeds."""
    counts = {"accepted": 0, "refused": 0}
    before = Fake(Settings(journal=40), world.SEED)
    call(before, "PUT", "/__parlel/clock", {"now": NOW, "freeze": True})

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(CHANGES)
    def check(changes: list[Any]) -> None:
        document, done = mutated(world.SEED, changes)
        unchanged = state_of(before)
        response = call(before, "POST", "/__parlel/seed", document)
        try:
            if response.status != 200:
                counts["refused"] += 1
                check_refusal(document, response)
                assert state_of(before) == unchanged, "a refused seed changed something"
                return
            counts["accepted"] += 1
            before.seed(world.SEED)
            call(before, "PUT", "/__parlel/clock", {"now": NOW, "freeze": True})
            fake = Fake(Settings(journal=40), document)
            try:
                survive(fake)
            finally:
                fake.close()
        except BaseException:
            before.seed(world.SEED)
            print("changed:", done, flush=True)
            raise

    check()
    before.close()
    print(f"seeds: {counts}", flush=True)


def snapshots(examples: int, number: int) -> None:
    """Snapshots."""
    counts = {"accepted": 0, "refused": 0}
    before = filled()
    good = ok(before, "GET", "/__parlel/state")

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(CHANGES)
    def check(changes: list[Any]) -> None:
        document, done = mutated(good, changes)
        fake = Fake(Settings(journal=40))
        try:
            response = call(fake, "PUT", "/__parlel/state", document)
            if response.status != 200:
                counts["refused"] += 1
                check_refusal(document, response)
                assert not list(fake.workspace.people), "a refused snapshot changed something"
                return
            counts["accepted"] += 1
            survive(fake)
        except BaseException:
            print("changed:", done, flush=True)
            raise
        finally:
            fake.close()

    check()
    before.close()
    print(f"snapshots: {counts}", flush=True)


def campaigns(examples: int, number: int) -> None:
    """Campaigns: four times as many, because they are smaller."""
    rng, counts = random.Random(number), {"accepted": 0, "refused": 0, "wrong": 0}
    drawn = [
        (name, path, odd)
        for name, document in journeys.DOCUMENTS.items()
        for kind in ("campaigns", "broadcasts")
        for path in paths(document.get(kind, []), (kind,))
        for odd in journeys.ODD
    ]
    drawn = sorted(rng.sample(drawn, min(4 * examples, len(drawn))), key=lambda row: row[0])
    for name, document in journeys.DOCUMENTS.items():
        check_going(document)
        before = Fake(Settings(journal=40), document)
        call(before, "PUT", "/__parlel/clock", {"now": NOW, "freeze": True})
        unchanged = state_of(before)
        for _, path, odd in [row for row in drawn if row[0] == name]:
            try:
                refused = check_campaign(before, document, path, odd)
                assert not refused or state_of(before) == unchanged, "a refusal changed something"
            except Exception as error:
                where = ".".join(map(str, path))
                print("changed:", name, where, f"{odd!r:.80}", f"{error!r:.500}", flush=True)
                counts["wrong"] += 1
                continue
            counts["refused" if refused else "accepted"] += 1
        before.close()
    print(f"campaigns: {counts}", flush=True)
    assert not counts["wrong"]


def check_campaign(before: Fake, document: Any, path: Path, odd: Any) -> bool:
    """Change one value; whether it is refused, then with its campaign and with what is wrong."""
    changed = copy.deepcopy(document)
    change(changed, path, "put", copy.deepcopy(odd), ())
    try:
        Fake(Settings(journal=40), changed).close()
    except customerio_fake.ApiError:
        response = call(before, "POST", "/__parlel/seed", changed)
        check_refusal(changed, response)
        message = json.loads(response.body)["meta"]["error"].partition("; an example")[0]
        names = [name for name in path if isinstance(name, str)][-2:]
        told = [*names, *AT_EDGES.get(names[-1], ())]
        assert re.match(r"(campaigns|broadcasts)\[\d", message), message
        assert any(name in message for name in told), message
        return True
    check_going(changed)
    return False


#: What is told instead of a field: which tiles there are, and how many ways they have, shows in
#: what leads to them.
AT_EDGES = {
    "id": ("edges", "action_id", "action_ids"),
    "actions": ("edges", "action_id"),
    "delay": ("edges", "paths"),
    "multi_conditions": ("edges", "paths"),
    "cohorts": ("paths",),
    "segments": ("segment.id",),
    "action_ids": ("edges",),
}


def check_going(document: Any) -> None:
    """Everything goes on well with these campaigns, and back into a snapshot."""
    fake = Fake(Settings(journal=40), document)
    LOG.lines.clear()
    try:
        began = time.monotonic()
        journeys.go_through(
            lambda method, path, body: expect(call(fake, method, path, body), method, path)
        )
        assert time.monotonic() - began < 10, "it takes too long"
        assert not LOG.lines, LOG.lines[:3]
        whole = ok(fake, "GET", "/__parlel/state")
        response = call(fake, "PUT", "/__parlel/state", whole)
        assert response.status == 200, ("its own snapshot", response.body)
    finally:
        fake.close()


def lives(examples: int, number: int) -> None:
    """What campaigns do, however it is lived: half as many, because each is lived four times."""
    counts = {"lived": 0, "refused": 0}

    @seed(number)
    @settings(
        max_examples=examples // 2, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(lived.WORKSPACE, lived.WEEKS, lived.STEPS)
    def check(workspace: Any, weeks: Any, steps: list[float]) -> None:
        document = lived.seed_of(workspace)
        fake = Fake(Settings())
        response = call(fake, "POST", "/__parlel/seed", document)
        fake.close()
        if response.status != 200:
            assert b"is never reached" in response.body, response.body
            counts["refused"] += 1
            return
        lived.all_the_same(document, weeks, steps)
        counts["lived"] += 1

    check()
    print(f"lives: {counts}", flush=True)
    assert counts["lived"] > 4 * counts["refused"], "too few are lived"


PARTS = {part.__name__: part for part in (seeds, snapshots, campaigns, lives)}


def main() -> int:
    """Run all parts, or one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=(*PARTS, ""), default="")
    asked = parser.parse_args()
    for name, part in PARTS.items():
        if asked.only in ("", name):
            began = time.monotonic()
            part(asked.examples, asked.seed)
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
