"""People, objects and segments, and what people want to get."""

from __future__ import annotations

import shapes as s

from .row import CHANGED, DELETED, ON_PRO, Row, family, new, refused, stage

# ==== Before anything happens

FRESH = [Row("listExports", "GET /v1/exports", {"exports": "null"})]

STAGED = [
    stage(
        "anEvent",
        "POST /api/v1/customers/ada/events",
        {"name": "order_placed", "data": {"total": 12}},
    ),
    stage("anAttributeChange", "PUT /api/v1/customers/ada", {"name": "Ada L."}),
    stage(
        "anObject",
        "POST /api/v2/entity",
        {
            "type": "object",
            "action": "identify",
            "identifiers": {"object_type_id": "1", "object_id": "acme"},
            "attributes": {"name": "Acme", "seats": 5},
            "cio_relationships": [
                {"identifiers": {"id": "ada"}, "relationship_attributes": {"role": "owner"}}
            ],
        },
    ),
]

# ==== People and objects

ADA = {"customer_id": "ada"}

PEOPLE = [
    Row(
        "getPeopleEmail",
        "GET /v1/customers",
        {"results": s.some(s.IDENTIFIERS)},
        query={"email": "ada@example.com"},
        needs=("email",),
    ),
    Row(
        "getPeopleFilter",
        "POST /v1/customers",
        s.PEOPLE,
        query={"limit": 10},
        body={"filter": ON_PRO},
        needs=("filter",),
    ),
    Row(
        "getPeopleById",
        "POST /v1/customers/attributes",
        {"customers": s.some({"customer": s.PERSON})},
        body={"ids": ["ada", "nobody"]},
        needs=("ids",),
    ),
    Row(
        "getPersonAttributes",
        "GET /v1/customers/{customer_id}/attributes",
        {"customer": s.PERSON},
        ids={"customer_id": "mailonly@example.com"},
        query={"id_type": "email"},
    ),
    *family(
        [
            Row(
                "getPersonAttributes",
                "GET /v1/customers/{customer_id}/attributes",
                {"customer": {**s.PERSON, "devices": s.some(s.DEVICE)}},
            ),
            Row(
                "getPersonRelationships",
                "GET /v1/customers/{customer_id}/relationships",
                {"cio_relationships": s.some(s.RELATIONSHIP), "next": "str"},
            ),
            Row(
                "getPersonSegments",
                "GET /v1/customers/{customer_id}/segments",
                {"segments": s.some({"id": "int", "name": "str", "description": "str"})},
            ),
            Row(
                "getPersonMessages",
                "GET /v1/customers/{customer_id}/messages",
                s.MESSAGES,
            ),
            Row(
                "getPersonActivities",
                "GET /v1/customers/{customer_id}/activities",
                s.ACTIVITIES,
                query={"limit": 5},
            ),
            Row(
                "getPersonSubscriptionPreferences",
                "GET /v1/customers/{customer_id}/subscription_preferences",
                {
                    "customer": {
                        "id": "str|null",
                        "identifiers": s.IDENTIFIERS,
                        "topics": s.some(
                            {
                                "id": "int|str",
                                "subscribed": "bool",
                                "name": "str",
                                "description": "str",
                            }
                        ),
                        "unsubscribed": "bool",
                        "header": {"title": "str", "subtitle": "str"},
                    }
                },
                query={"language": "en"},
                unknown={"customer_id": (400, 404)},
            ),
            *new(
                [
                    Row(
                        "updatePersonOptouts",
                        "PUT /v1/customers/{customer_id}/optouts",
                        s.EMPTY,
                        CHANGED,
                        body={"optouts": [{"from": "+15550100", "optout": True, "channel": "sms"}]},
                        needs=("optouts", "optouts.0.from", "optouts.0.optout"),
                    ),
                    Row(
                        "getPersonOptouts",
                        "GET /v1/customers/{customer_id}/optouts",
                        {"optouts": s.some(s.OPTOUTS[0])},
                    ),
                    Row(
                        "getSubscriptionCenterToken",
                        "GET /v1/subscription_center/{customer_id}/token",
                        {"token": "str", "url": "url"},
                        unknown={"customer_id": (400,)},
                    ),
                ]
            ),
        ],
        ids=ADA,
    ),
    *new(
        [
            Row(
                "getOptouts",
                "GET /v1/optouts",
                {
                    "optouts": s.some(
                        {"customer_id": "str", "cio_id": "str", "optouts": s.OPTOUTS}
                    ),
                    "next?": "str",
                },
                query={"from": "+15550100"},
            ),
            Row(
                "updateAttributeMetadata",
                "POST /v1/data_index/attributes",
                s.EMPTY,
                CHANGED,
                body={"attributes": [{"name": "plan", "description": "What is paid for"}]},
                needs=("attributes", "attributes.0", "attributes.0.name"),
            ),
            Row(
                "updateEventMetadata",
                "POST /v1/data_index/events",
                s.EMPTY,
                CHANGED,
                body={"events": [{"name": "order_placed", "description": "An order"}]},
                needs=("events", "events.0", "events.0.name"),
            ),
        ]
    ),
]

REFUSED_PEOPLE = [
    refused(
        "getPersonAttributes",
        "GET /v1/customers/{customer_id}/attributes",
        400,
        ids=ADA,
        query={"id_type": "nickname"},
    ),
    refused(
        "getPersonAttributes",
        "GET /v1/customers/{customer_id}/attributes",
        404,
        ids={"customer_id": "ada@example.com"},
    ),
    refused(
        "getPeopleById",
        "POST /v1/customers/attributes",
        *(400, 422),
        body={"ids": [str(number) for number in range(101)]},
    ),
    refused(
        "getPeopleFilter",
        "POST /v1/customers",
        *(400, 422),
        body={"filter": {"segment": {"id": 1}, "not": {"segment": {"id": 2}}}},
    ),
    *new(
        [
            refused(
                "updatePersonOptouts",
                "PUT /v1/customers/{customer_id}/optouts",
                400,
                ids=ADA,
                body={"optouts": [{"from": "+15550100", "optout": True, "channel": "fax"}]},
            ),
        ]
    ),
]

ACME = {"object_type_id": 1, "object_id": "acme"}
#: The file of 2025 has those of people here, which an object can't have.
OBJECT_IDENTIFIERS = s.either(
    {"cio_object_id": "str", "object_id": "str"},
    {"cio_object_id": "str", "id": "str", "email?": "null", "object_id?": "str"},
)

OBJECTS = [
    Row("getObjectTypes", "GET /v1/object_types", {"types": s.some(s.OBJECT_TYPE)}),
    Row(
        "getObjectsFilter",
        "POST /v1/objects",
        {
            "identifiers": s.some({"cio_object_id": "str", "object_id": "str"}),
            "ids": s.some("str"),
            "next": "str",
        },
        body={
            "object_type_id": "1",
            "filter": {
                "and": [
                    {
                        "object_attribute": {
                            "field": "name",
                            "operator": "eq",
                            "value": "Acme",
                            "type_id": "1",
                        }
                    }
                ]
            },
        },
        needs=("object_type_id", "filter"),
    ),
    *family(
        [
            Row(
                "getObjectAttributes",
                "GET /v1/objects/{object_type_id}/{object_id}/attributes",
                {
                    "object": {
                        "attributes": "object",
                        "timestamps": {"*": "unix"},
                        "identifiers": OBJECT_IDENTIFIERS,
                        "object_type_id": "str",
                    }
                },
            ),
            Row(
                "getObjectRelationships",
                "GET /v1/objects/{object_type_id}/{object_id}/relationships",
                {
                    "cio_relationships": s.some(
                        {
                            "identifiers": s.IDENTIFIERS,
                            "object_type_id": "str",
                            "object_type_disabled?": "bool",
                            "attributes?": "object",
                            "timestamps?": "object",
                        }
                    ),
                    "next": "str",
                },
            ),
        ],
        ids=ACME,
    ),
]

# ==== Segments

A_SEGMENT: s.Shape = {"segment": s.SEGMENT}

SEGMENTS = [
    Row("listSegments", "GET /v1/segments", {"segments": s.some(s.SEGMENT)}),
    Row(
        "createManSegment",
        "POST /v1/segments",
        A_SEGMENT,
        body={"segment": {"name": "VIPs", "description": "By hand"}},
        needs=("segment", "segment.name"),
        keeps={"new_segment": "segment.id"},
    ),
    *family(
        [
            Row("getSegment", "GET /v1/segments/{segment_id}", A_SEGMENT),
            Row(
                "getSegmentDependencies",
                "GET /v1/segments/{segment_id}/used_by",
                {"used_by": s.USED_BY},
            ),
            Row(
                "getSegmentCount", "GET /v1/segments/{segment_id}/customer_count", {"count": "int"}
            ),
            Row("getSegmentMembership", "GET /v1/segments/{segment_id}/membership", s.PEOPLE),
        ],
        ids={"segment_id": 1},
    ),
    Row(
        "getSegmentMembership",
        "GET /v1/segments/{segment_id}/membership",
        s.PEOPLE,
        ids={"segment_id": 2},
        query={"limit": 1},
    ),
    Row(
        "deleteManSegment",
        "DELETE /v1/segments/{segment_id}",
        s.EMPTY,
        DELETED,
        ids={"segment_id": "$new_segment"},
    ),
]

REFUSED_SEGMENTS = [
    refused(
        "createManSegment",
        "POST /v1/segments",
        422,
        body={"segment": {"name": ""}},
    ),
]
