"""Campaigns that anything may happen to: what comes of them does not hang on who looks, and when.

Hypothesis draws a workspace with campaigns and a broadcast, and some weeks of what happens in it.
They are lived several times: from call to call in one jump, once more the same way, in many small
steps, and in steps with a snapshot put back after each. All of them leave the same records.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Callable

from hypothesis import strategies as st
from world import NOW, call, ok

from customerio_fake import COLLECTIONS, Fake, Settings

HOUR, DAY = 3600, 86400
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
#: People come and go as `PEOPLE` or `LATER`; campaigns begin with `EVENTS`, and make `made`.
PEOPLE, LATER, EVENTS = ("p0", "p1", "p2"), ("p3",), ("order", "signup")
#: The manual segment, and those with conditions.
SEGMENTS = (1, 2, 3)

Doc = dict[str, Any]


def one(*values: Any) -> st.SearchStrategy[Any]:
    """One of some values."""
    return st.sampled_from(values)


def doc(**parts: Any) -> st.SearchStrategy[Doc]:
    """An object of what is given: drawn if it is a strategy, as it is if it is none."""
    return st.fixed_dictionaries(
        {n: p if isinstance(p, st.SearchStrategy) else st.just(p) for n, p in parts.items()}
    )


def perhaps(**parts: Any) -> st.SearchStrategy[Doc]:
    """An object of some of what is given."""
    return st.fixed_dictionaries({}, optional=parts)


def both(*parts: st.SearchStrategy[Doc]) -> st.SearchStrategy[Doc]:
    """Objects as one."""
    return st.tuples(*parts).map(lambda drawn: {n: v for part in drawn for n, v in part.items()})


# ---- conditions

ATTRIBUTE = st.one_of(
    doc(field="plan", operator=one("eq", "ne"), value=one("pro", "free")),
    doc(field="n", operator=one("gt", "lt", "eq"), value=st.integers(0, 3)),
    doc(field=one("plan", "seen", "when"), operator="exists"),
    doc(field="when", operator=one("is_timestamp", "timestamp_gt"), value=0),
)
HAPPENED = both(
    doc(event=doc(name=one(*EVENTS, "made"))),
    perhaps(within=one(HOUR, DAY, 7 * DAY), times=st.integers(1, 2), inverse=st.just(True)),
)


def conditions(segments: tuple[int, ...] = SEGMENTS) -> st.SearchStrategy[Doc]:
    """What is asked of a person."""
    leaf = st.one_of(
        doc(attribute=ATTRIBUTE),
        HAPPENED,
        doc(segment=doc(id=one(*segments))),
        doc(message=doc(metric=one("opened", "sent"))),
    )
    more = lambda inner: st.one_of(  # noqa: E731
        doc(**{"and": st.lists(inner, min_size=2, max_size=2)}),
        doc(**{"or": st.lists(inner, min_size=2, max_size=2)}),
        doc(**{"not": inner}),
    )
    return st.recursive(leaf, more, max_leaves=3)


ASKED = conditions()

# ---- workflows

TIME = st.tuples(st.integers(0, 23), one("00", "30")).map(lambda time: f"{time[0]:02}:{time[1]}")
MESSAGE = both(
    doc(type=one("email", "email", "in_app"), body="b {{customer.plan}}",
        subject=one("Hi {{customer.email}}", "{{event.total}}", "{{trigger.x}}", "plain",
                    "{{trigger.company.name}}"),
        **{"from": "shop@example.com"}),
    one({}, {}, {}, {"sending_state": "draft"}, {"sending_state": "off"}),
)  # fmt: skip
QUIET = st.one_of(
    MESSAGE,
    both(MESSAGE, doc(preconditions=ASKED)),
    doc(type="delay_seconds", delay=one(5, 60, HOUR, DAY, 3 * DAY)),
    doc(type="randomized_delay", min_delay=60, max_delay=one(HOUR, 2 * DAY)),
    both(doc(type="delay_time_window", start_time=TIME, end_time=TIME,
             zone=one(*ZONES, "customer_time_zone")),
         perhaps(days=st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True))),
    doc(type="attribute_update", attributes=perhaps(plan=one("pro", "{{customer.email}}"),
                                                    seen=st.integers(0, 2), n=one(1, 3))),
    doc(type="static_seg_update", segment_id=1, operation=one("add", "remove")),
)  # fmt: skip
#: This sets campaigns off, and is in none that it sets off, so that nothing goes in circles.
MAKER = doc(type="create_event", event_name="made", data=doc(total=1))


def branches(path: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[Doc]:
    """Tiles with several paths."""
    two, three = (st.lists(path, min_size=n, max_size=n) for n in (2, 3))
    wait = {"type": "conditional_wait", "exit_type": "continue", "delay": one(HOUR, DAY, 5 * DAY)}
    pair = st.lists(ASKED, min_size=2, max_size=2)
    return st.one_of(
        doc(type="conditional_branch", conditions=ASKED, paths=two),
        doc(type="multi_split_branch", multi_conditions=pair, paths=three),
        doc(type="random_cohort_branch", cohorts=[300, 300, 400], paths=three),
        doc(**wait, multi_conditions=ASKED.map(lambda asked: [asked]), paths=two),
        doc(**wait, multi_conditions=pair, paths=three),
    )


def workflow(leaf: st.SearchStrategy[Doc]) -> st.SearchStrategy[list[Any]]:
    """The tiles of a campaign; a path may end with an exit."""
    tiles = st.lists(leaf, max_size=3)
    ended = st.tuples(tiles, one([], [], [], [{"type": "exit"}])).map(
        lambda two: [*two[0], *two[1]]
    )
    return st.recursive(
        ended, lambda path: st.lists(st.one_of(leaf, branches(path)), max_size=3), max_leaves=6
    )


WORKFLOW, SILENT = workflow(st.one_of(QUIET, MAKER)), workflow(QUIET)
RULES = perhaps(
    filter=ASKED,
    goal=doc(segment=doc(id=one(*SEGMENTS))) | doc(event=doc(name=one(*EVENTS))),
    global_exit_conditions=ASKED.map(lambda asked: [asked]),
    exit_on_trigger_or_filter_not_matched=st.booleans(),
    restart_mode=one("once", "rematch"),
    audience_at_start=one("current", "future"),
)
DATE = both(
    doc(type="date", date_attribute="when", time="09:00", timezone=one(*ZONES)),
    doc(lead_days=st.integers(-2, 1), frequency=one("once", "yearly", "monthly")),
)
CAMPAIGN = st.one_of(
    both(doc(type="event", event_name=one(*EVENTS), actions=WORKFLOW), RULES),
    both(doc(type="event", event_name="made", actions=SILENT), RULES),
    both(doc(type="segment", trigger=ASKED, actions=WORKFLOW), RULES),
    both(doc(type="segment", trigger=ASKED, actions=WORKFLOW), RULES,
         doc(restart_mode="interval", restart_min_interval=one(DAY, 3 * DAY))),
    both(DATE, doc(actions=WORKFLOW), RULES),
    both(doc(type=one("object", "relationship"), object_type_id=1, actions=WORKFLOW,
             audience=doc(type=one(0, 1))), RULES),
    doc(type="webhook", webhook_id="0123456789abcdef", actions=st.lists(
        both(MAKER, doc(person=doc(id="{{trigger.x}}"))), min_size=1, max_size=2)),
)  # fmt: skip
PERSON = doc(
    email="{}@example.com", plan=one("pro", "free"), n=st.integers(0, 3), timezone=one(*ZONES),
    when=st.integers(-4, 20).map(lambda halves: NOW + halves * DAY // 2),
)  # fmt: skip
WORKSPACE = doc(
    people=st.tuples(*[PERSON for _ in PEOPLE]),
    asked=st.tuples(conditions((1,)), conditions((1, 2))),
    campaigns=st.lists(CAMPAIGN, min_size=2, max_size=4),
    broadcast=WORKFLOW,
)


def numbered(tiles: list[Any], ids: Counter[str]) -> list[Any]:
    """Tiles with ids, those inside of them, too."""
    made = []
    for tile in tiles:
        ids["tile"] += 1
        row = {"id": ids["tile"], **tile}
        if "paths" in tile:
            row["paths"] = [numbered(path, ids) for path in tile["paths"]]
        made.append(row)
    return made


def seed_of(drawn: Doc) -> Doc:
    """The seed of a workspace."""
    ids: Counter[str] = Counter()
    people = zip(PEOPLE, drawn["people"])
    dynamic = enumerate(drawn["asked"], 2)
    return {
        "clock": {"now": NOW, "freeze": True},
        "object_types": [{"id": 1, "name": "Companies", "singular_slug": "company"}],
        "customers": [{"id": i, "attributes": {**row, "email": f"{i}@x.io"}} for i, row in people],
        "segments": [{"id": 1, "name": "by hand", "ids": ["p0"]}]
        + [{"id": n, "name": f"of {n}", "conditions": asked} for n, asked in dynamic],
        "campaigns": [
            {**row, "id": n, "name": f"c{n}", "actions": numbered(row["actions"], ids)}
            for n, row in enumerate(drawn["campaigns"], 1)
        ],
        "broadcasts": [
            {"id": 9, "name": "b", "actions": numbered([*drawn["broadcast"], MESSAGE_AT_LAST], ids)}
        ],
    }


MESSAGE_AT_LAST = {"type": "email", "from": "a@x.io", "subject": "{{trigger.x}}", "body": "b"}

# ---- what happens

SOMEBODY = one(*PEOPLE, *LATER)


def calls(who: str, other: str, what: str, event: str, update: Doc) -> tuple[str, str, Any]:
    """A request of one of the kinds in HAPPENS."""
    at = f"/api/v1/customers/{who}"
    pair = {"primary": {"id": who}, "secondary": {"id": other}}
    company = {"type": "object", "identifiers": {"object_type_id": "1", "object_id": "acme"}}
    rows: dict[str, tuple[str, str, Any]] = {
        "track": ("POST", f"{at}/events", {"name": event, "data": {"total": 2}}),
        "identify": ("PUT", at, update),
        "delete": ("DELETE", at, None),
        "merge": ("POST", "/api/v1/merge_customers", pair),
        "add": ("POST", "/api/v1/segments/1/add_customers", {"ids": [who]}),
        "remove": ("POST", "/api/v1/segments/1/remove_customers", {"ids": [who]}),
        "broadcast": ("POST", "/v1/campaigns/9/triggers",
                      {"ids": [who], "id_ignore_missing": True, "data": {"x": "y"}}),
        "open": ("POST", "/api/v1/metrics", {"metric": "opened"}),
        "relate": ("POST", "/api/v2/entity", {**company, "action": "add_relationships",
                   "cio_relationships": [{"identifiers": {"id": who}}]}),
        "rename": ("POST", "/api/v2/entity", {**company, "action": "identify",
                   "attributes": {"name": event}}),
        "webhook": ("POST", "/v1/webhook/0123456789abcdef", {"x": other}),
        "restart": ("PUT", "/__parlel/campaigns/1", {"state": "stopped"}),
        "start": ("PUT", "/__parlel/campaigns/1", {"state": "running"}),
    }  # fmt: skip
    return rows[what]


HAPPENS = st.builds(
    calls,
    SOMEBODY,
    SOMEBODY,
    one(*["track"] * 5, *["identify"] * 3, "open", "open", "add", "remove", "delete", "merge",
        "broadcast", "broadcast", "restart", "start", "relate", "relate", "rename", "webhook"),
    one(*EVENTS),
    perhaps(plan=one("pro", "free"), n=st.integers(0, 3), timezone=one(*ZONES),
            when=st.integers(0, 20).map(lambda halves: NOW + halves * DAY // 2)),
)  # fmt: skip
WEEKS = st.lists(
    st.tuples(one(0, 0, 30, 600, 2 * HOUR, DAY, 2 * DAY), HAPPENS), min_size=8, max_size=20
)
#: With a long one among them, so that it comes to an end.
STEPS = st.lists(one(1, 60, HOUR, 40_000, DAY, 1234.5), max_size=6).map(lambda s: [*s, 2.5 * DAY])

# ---- living it


class Life:
    """A workspace through which one lives in steps of some lengths, in seconds; None for jumps."""

    def __init__(self, seed: Doc, steps: list[float], look: Callable[[Fake], None]) -> None:
        self.fake, self.now, self.steps, self.look = Fake(Settings()), float(NOW), steps, look
        self.taken = 0
        ok(self.fake, "POST", "/__parlel/seed", seed)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            step = self.steps[self.taken % len(self.steps)] if self.steps else seconds
            self.taken += 1
            self.now = min(end, self.now + step)
            ok(self.fake, "PUT", "/__parlel/clock", {"now": self.now})
            self.look(self.fake)

    def do(self, method: str, path: str, body: Any) -> None:
        """Make a call, whatever is answered but a 500."""
        if path.endswith("/metrics"):
            rows = ok(self.fake, "GET", "/__parlel/deliveries?order=newest&limit=1")["deliveries"]
            body = {**body, "delivery_id": rows[0]["delivery_id"] if rows else "none"}
        assert call(self.fake, method, path, body).status < 500, (method, path, body)

    def records(self) -> Doc:
        """All that is left of it."""
        names = [name for name in COLLECTIONS if name != "requests"]
        lists = {name: ok(self.fake, "GET", f"/__parlel/{name}?limit=100000") for name in names}
        members = [ok(self.fake, "GET", f"/v1/segments/{n}/membership") for n in SEGMENTS]
        return {**lists, "members": members}


def put_back(fake: Fake) -> None:
    """Put a snapshot back."""
    ok(fake, "PUT", "/__parlel/state", ok(fake, "GET", "/__parlel/state"))


def lived(seed: Doc, happens: Any, steps: list[float], look: Callable[[Fake], None]) -> Doc:
    """What is left after all that happens, and two weeks more."""
    life = Life(seed, steps, look)
    try:
        for pause, request in happens:
            life.wait(pause)
            life.do(*request)
        life.wait(14 * DAY)
        return life.records()
    finally:
        life.fake.close()


def all_the_same(seed: Doc, happens: Any, steps: list[float]) -> None:
    """Raises AssertionError if one way to live it leaves anything else than another."""
    once = lived(seed, happens, [], lambda fake: None)
    ways: dict[str, tuple[list[float], Callable[[Fake], None]]] = {
        "once more": ([], lambda fake: None),
        "in steps": (steps, lambda fake: None),
        "with snapshots": (steps, put_back),
    }
    for name, (some, look) in ways.items():
        again = lived(seed, happens, some, look)
        for part, rows in once.items():
            same = json.dumps(rows) == json.dumps(again[part])
            assert same, f"{name}: other {part}\n{json.dumps(rows)}\n{json.dumps(again[part])}"
