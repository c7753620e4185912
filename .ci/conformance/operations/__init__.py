"""All 186 operations of the App API as data: a valid request each, and the answer to expect.

The rows stand in the order in which they can be called: what a row needs is in `seed.json` or
was made by a row above it. An operation has several rows where its body or its answer has
several forms; it counts once, when all its rows do.
"""

from __future__ import annotations

from typing import List

from . import messages, people, studio, workspace
from .row import UNKNOWN, Json, Row

__all__ = ["ROWS", "UNKNOWN", "Json", "Row"]

ROWS: List[Row] = [
    *people.FRESH,
    *people.STAGED,
    *messages.SENDS,
    *messages.REFUSED_SENDS,
    *messages.CLICKS,
    *messages.TRANSACTIONAL,
    *messages.REFUSED_TRANSACTIONAL,
    *messages.CAMPAIGNS,
    *messages.REFUSED_CAMPAIGNS,
    *messages.BROADCASTS,
    *messages.REFUSED_BROADCASTS,
    *messages.NEWSLETTERS,
    *messages.DRAFTED,
    *messages.REFUSED_NEWSLETTERS,
    *messages.MESSAGES,
    *people.PEOPLE,
    *people.REFUSED_PEOPLE,
    *people.OBJECTS,
    *people.SEGMENTS,
    *people.REFUSED_SEGMENTS,
    *workspace.SENDERS,
    *workspace.SNIPPETS,
    *workspace.REFUSED_SNIPPETS,
    *workspace.COLLECTIONS,
    *workspace.SUBSCRIPTIONS,
    *workspace.WEBHOOKS,
    *workspace.SUPPRESSIONS,
    *workspace.EXPORTS,
    *workspace.IMPORTS,
    *workspace.ACCOUNT,
    *messages.LIVE_NOTIFICATIONS,
    *messages.REFUSED_LIVE_NOTIFICATIONS,
    *studio.ASSETS,
    *studio.STUDIO,
    *studio.EMAILS[:-1],
    *studio.PREVIEWS,
    *studio.EMAILS[-1:],
]
