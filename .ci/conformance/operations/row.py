"""What a row of the table of operations says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import shapes as s

Json = Any
Statuses = Tuple[int, ...]

SINCE_2025 = "2025"
SINCE_2026 = "2026"
#: Not an App operation: it brings about what a later row asks for.
STAGE = ""


@dataclass(frozen=True)
class Row:
    """One call. `$name` in ids, query and body stands for what a row above has kept."""

    name: str
    request: str
    answer: s.Shape
    status: Statuses = (200,)
    ids: Mapping[str, Json] = field(default_factory=dict)
    query: Mapping[str, Json] = field(default_factory=dict)
    body: Json = None
    #: A file to send as multipart/form-data instead, with the body's fields.
    upload: Optional[Tuple[str, bytes]] = None
    #: Fields that can't be left out; a dot leads into objects and lists.
    needs: Sequence[str] = ()
    #: What later rows want to know: its name, and where it stands in the answer.
    keeps: Mapping[str, str] = field(default_factory=dict)
    #: The statuses that tell of an unknown path id, where the rule below doesn't do.
    unknown: Mapping[str, Statuses] = field(default_factory=dict)
    since: str = SINCE_2025

    @property
    def is_refusal(self) -> bool:
        """Whether the call is one to refuse."""
        return self.status[0] >= 400

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.split(" ")[0]

    @property
    def path(self) -> str:
        """The path as the official reference writes it."""
        return self.request.split(" ")[1]


#: What tells of an unknown path id: 404, but for these. Any address and domain can be asked for.
UNKNOWN: Dict[str, Statuses] = {
    "language": (400, 404),
    "test_group_id": (400, 404),
    "suppression_type": (400, 404, 422),
    "email_address": (),
    "domain_name": (),
}


def stage(name: str, request: str, body: Json) -> Row:
    """A Track call: people do something that the App API tells of."""
    return Row(name, request, {"*": "any"}, body=body, since=STAGE)


def new(rows: Sequence[Row]) -> List[Row]:
    """Rows of operations that came in 2026."""
    return [replace(row, since=SINCE_2026) for row in rows]


def family(rows: Sequence[Row], **same: Any) -> List[Row]:
    """Rows with something in common."""
    return [replace(row, **same) for row in rows]


def refused(name: str, request: str, *status: int, **more: Any) -> Row:
    """A call that the reference says is refused."""
    sending = "/v1/send/" in request
    return Row(name, request, s.SEND_REFUSAL if sending else s.REFUSAL, status, **more)


DELETED = (204,)
CHANGED = (204,)

#: A filter for the people on the pro plan: ada.
ON_PRO: Json = {
    "and": [{"segment": {"id": 2}}, {"attribute": {"field": "plan", "operator": "exists"}}]
}
