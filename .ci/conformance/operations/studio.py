"""Assets and Design Studio, both since 2026."""

from __future__ import annotations

import shapes as s

from .row import CHANGED, DELETED, Json, Row, family, new, refused

# ==== Assets

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63"
    "6460f85f0f0002870180eb47ba920000000049454e44ae426082"
)

ASSET_FOLDER = {"id": "$asset_folder"}
ASSET = {"id": "$asset"}

ASSETS = new(
    [
        Row(
            "createAssetFolder",
            "POST /v1/assets/folders",
            {"folder": s.ASSET_FOLDER},
            body={"name": "Logos"},
            needs=("name",),
            keeps={"asset_folder": "folder.id"},
        ),
        Row(
            "createAsset",
            "POST /v1/assets/files",
            {"asset": s.ASSET},
            body={"name": "logo", "parent_folder_id": "$asset_folder"},
            upload=("logo.png", PNG),
            needs=("file",),
            keeps={"asset": "asset.id"},
        ),
        Row(
            "listAssets",
            "GET /v1/assets",
            {"assets": s.some(s.ASSET), "meta": s.ASSET_META},
            query={"parent_folder_id": "$asset_folder", "page": 1, "limit": 10},
        ),
        Row("getAsset", "GET /v1/assets/files/{id}", {"asset": s.ASSET}, ids=ASSET),
        Row(
            "updateAsset",
            "PUT /v1/assets/files/{id}",
            s.EMPTY,
            CHANGED,
            ids=ASSET,
            body={"name": "old logo", "parent_folder_id": None},
        ),
        Row(
            "listAssetFolders",
            "GET /v1/assets/folders",
            {"folders": s.some(s.ASSET_FOLDER), "meta": s.ASSET_META},
        ),
        Row(
            "getAssetFolder",
            "GET /v1/assets/folders/{id}",
            {"folder": s.ASSET_FOLDER},
            ids=ASSET_FOLDER,
        ),
        Row(
            "updateAssetFolder",
            "PUT /v1/assets/folders/{id}",
            s.EMPTY,
            CHANGED,
            ids=ASSET_FOLDER,
            body={"name": "Pictures"},
        ),
        refused(
            "createAssetFolder",
            "POST /v1/assets/folders",
            409,
            body={"name": "Pictures"},
        ),
        refused("updateAsset", "PUT /v1/assets/files/{id}", 400, ids=ASSET, body={"name": " "}),
        refused("listAssets", "GET /v1/assets", 400, query={"limit": 10_001}),
        Row("deleteAsset", "DELETE /v1/assets/files/{id}", s.EMPTY, DELETED, ids=ASSET),
        Row(
            "deleteAssetFolder",
            "DELETE /v1/assets/folders/{id}",
            s.EMPTY,
            DELETED,
            ids=ASSET_FOLDER,
        ),
    ]
)

# ==== Design studio

FOLDER = {"id": "$folder"}
COMPONENT = {"id": "$component"}
EMAIL = {"id": "$email"}

STUDIO = new(
    [
        Row(
            "createFolder",
            "POST /v1/design_studio/folders",
            {"folder": s.FOLDER},
            body={"name": "Spring"},
            needs=("name",),
            keeps={"folder": "folder.id"},
        ),
        Row(
            "listFolders",
            "GET /v1/design_studio/folders",
            {"folders": s.some(s.FOLDER), "meta": s.FOLDER_META},
            query={"sort_by": "name", "sort_order": "desc", "created_after": 1},
        ),
        Row("getFolder", "GET /v1/design_studio/folders/{id}", {"folder": s.FOLDER}, ids=FOLDER),
        Row(
            "updateFolder",
            "PUT /v1/design_studio/folders/{id}",
            s.EMPTY,
            CHANGED,
            ids=FOLDER,
            body={"name": "Summer"},
            needs=("name",),
        ),
        Row(
            "createComponent",
            "POST /v1/design_studio/components",
            {"component": s.COMPONENT},
            body={"name": "Button", "tag": "x-button", "content": "<a><slot></slot></a>"},
            needs=("name", "tag", "content"),
            keeps={"component": "component.id"},
        ),
        Row(
            "listComponents",
            "GET /v1/design_studio/components",
            {
                "components": s.some(s.LISTED_COMPONENT),
                "folders": s.some(s.FOLDER),
                "meta": s.COMPONENT_META,
            },
        ),
        Row(
            "getComponent",
            "GET /v1/design_studio/components/{id}",
            {"component": s.COMPONENT},
            ids=COMPONENT,
        ),
        Row(
            "updateComponent",
            "PUT /v1/design_studio/components/{id}",
            s.EMPTY,
            CHANGED,
            ids=COMPONENT,
            body={"parent_folder_id": "$folder"},
            needs=("parent_folder_id",),
        ),
        refused(
            "createComponent",
            "POST /v1/design_studio/components",
            409,
            body={"name": "Button 2", "tag": "x-button", "content": "<a></a>"},
        ),
        refused(
            "createFolder",
            "POST /v1/design_studio/folders",
            400,
            body={"name": "a/b"},
        ),
        refused(
            "updateFolder",
            "PUT /v1/design_studio/folders/{id}",
            400,
            ids=FOLDER,
            body={"name": "Autumn", "colour": "brown"},
        ),
        refused(
            "listComponents",
            "GET /v1/design_studio/components",
            400,
            query={"sort_by": "colour"},
        ),
        Row(
            "deleteComponent",
            "DELETE /v1/design_studio/components/{id}",
            s.EMPTY,
            DELETED,
            ids=COMPONENT,
        ),
    ]
)

HTML = "<html><body><p>Hi {{customer.name}}</p><a href='https://example.com'>Go</a></body></html>"
TARGET: Json = {"type": "transactional_message", "transactional_message_id": 1}

EMAILS = new(
    [
        Row(
            "createEmail",
            "POST /v1/design_studio/emails",
            {"email": s.EMAIL},
            body={
                "name": "Hi",
                "parent_folder_id": None,
                "content": {"subject": "Hi {{customer.name}}", "html": HTML},
                "envelope": {"from_id": 1, "headers": [{"name": "X-Shop", "value": "1"}]},
                "transformers": {"css_inliner": {"enabled": True}},
            },
            needs=("name",),
            keeps={"email": "email.id"},
        ),
        Row(
            "createEmail",
            "POST /v1/design_studio/emails",
            {"email": s.EMAIL},
            body={"name": "Spare", "is_template": True},
            keeps={"spare": "email.id"},
        ),
        Row(
            "listEmails",
            "GET /v1/design_studio/emails",
            {"emails": s.some(s.LISTED_EMAIL), "folders": [s.FOLDER], "meta": s.EMAIL_META},
            query={"is_template": "any", "has_translations": "false", "is_linked": "any"},
        ),
        *family(
            [
                Row("getEmail", "GET /v1/design_studio/emails/{id}", {"email": s.EMAIL}),
                Row(
                    "updateEmail",
                    "PUT /v1/design_studio/emails/{id}",
                    s.EMPTY,
                    CHANGED,
                    body={"name": "Hello"},
                    needs=("name",),
                ),
                Row(
                    "createEmailTranslation",
                    "POST /v1/design_studio/emails/{id}/languages",
                    {"email_translation": s.TRANSLATION},
                    body={"language": "es", "content": {"subject": "Hola"}},
                    needs=("language",),
                ),
                Row(
                    "listEmailTranslations",
                    "GET /v1/design_studio/emails/{id}/languages",
                    {"email_translations": s.some(s.TRANSLATION)},
                ),
                refused(
                    "createEmailTranslation",
                    "POST /v1/design_studio/emails/{id}/languages",
                    409,
                    body={"language": "es"},
                ),
                Row(
                    "getEmailTranslation",
                    "GET /v1/design_studio/emails/{id}/languages/{language}",
                    {"email_translation": s.TRANSLATION},
                ),
                Row(
                    "updateEmailTranslation",
                    "PUT /v1/design_studio/emails/{id}/languages/{language}",
                    s.EMPTY,
                    CHANGED,
                    body={"content": {"subject": "¡Hola!"}},
                    needs=("content",),
                ),
                Row(
                    "deleteEmailTranslation",
                    "DELETE /v1/design_studio/emails/{id}/languages/{language}",
                    s.EMPTY,
                    DELETED,
                ),
                Row(
                    "renderEmail",
                    "GET /v1/design_studio/emails/{id}/render",
                    s.RENDERED,
                ),
                Row(
                    "previewEmail",
                    "POST /v1/design_studio/emails/{id}/preview",
                    s.PREVIEW,
                    body={"customer": {"name": "Ada"}, "lax": True},
                ),
                Row(
                    "reviewEmail",
                    "GET /v1/design_studio/emails/{id}/review",
                    s.REVIEW,
                ),
                Row(
                    "saveVersion",
                    "POST /v1/design_studio/emails/{id}/versions",
                    {"created": "bool", "version": s.VERSION},
                    body={"name": "First", "description": "As it was"},
                    needs=("name",),
                    keeps={"version_id": "version.id"},
                ),
                Row(
                    "listVersions",
                    "GET /v1/design_studio/emails/{id}/versions",
                    {"versions": s.some(s.VERSION)},
                    query={"start_date": "$yesterday", "end_date": "$tomorrow"},
                ),
                Row(
                    "getVersion",
                    "GET /v1/design_studio/emails/{id}/versions/{version_id}",
                    {
                        "version": s.VERSION,
                        "node": s.VERSION_NODE,
                        "dependencies": [s.DEPENDENCY],
                    },
                ),
                Row(
                    "restoreVersion",
                    "POST /v1/design_studio/emails/{id}/versions/{version_id}/restore",
                    {
                        "node_id": "uuid",
                        "version_id": "uuid",
                        "restored_node_ids": s.some("uuid"),
                    },
                ),
                Row(
                    "deleteVersion",
                    "DELETE /v1/design_studio/emails/{id}/versions/{version_id}",
                    s.EMPTY,
                    DELETED,
                ),
                Row(
                    "linkEmail",
                    "POST /v1/design_studio/emails/{id}/link",
                    s.LINKED,
                    body={"target": TARGET, "force": True},
                    needs=("target", "target.type", "target.transactional_message_id"),
                ),
                refused("deleteEmail", "DELETE /v1/design_studio/emails/{id}", 409),
                refused(
                    "linkEmail",
                    "POST /v1/design_studio/emails/{id}/link",
                    *(400, 409),
                    body={"target": {"type": "newsletter", "newsletter_id": 31}},
                ),
                Row(
                    "checkUnpublishedChanges",
                    "GET /v1/design_studio/emails/{id}/unpublished_changes",
                    {"has_unpublished_changes": "bool"},
                ),
                Row(
                    "publishEmail",
                    "POST /v1/design_studio/emails/{id}/publish",
                    s.PUBLISHED,
                    keeps={"publish_id": "publish_id"},
                ),
                Row(
                    "getPublishStatus",
                    "GET /v1/design_studio/emails/{id}/publish_status",
                    s.PUBLISH_STATUS,
                    query={"publish_id": "$publish_id"},
                    needs=("publish_id",),
                ),
                refused(
                    "getPublishStatus",
                    "GET /v1/design_studio/emails/{id}/publish_status",
                    *(400, 404),
                    query={"publish_id": "nobody-knows-this"},
                ),
            ],
            ids={**EMAIL, "language": "es", "version_id": "$version_id"},
        ),
        Row(
            "deleteEmail",
            "DELETE /v1/design_studio/emails/{id}",
            s.EMPTY,
            DELETED,
            ids={"id": "$spare"},
        ),
        Row(
            "deleteFolder",
            "DELETE /v1/design_studio/folders/{id}",
            s.EMPTY,
            DELETED,
            ids=FOLDER,
        ),
    ]
)

EMAIL_PREVIEWS = "/v1/design_studio/emails/{id}/inbox_previews"

PREVIEWS = new(
    [
        Row(
            "listInboxPreviewClients",
            "GET /v1/design_studio/inbox_previews/clients",
            {"clients": s.some(s.PREVIEW_CLIENT)},
            keeps={"client_id": "clients.0.id"},
        ),
        Row(
            "getInboxPreviewCredits",
            "GET /v1/design_studio/inbox_previews/credits",
            {"credits": s.some(s.PREVIEW_CREDIT)},
        ),
        *family(
            [
                Row(
                    "submitInboxPreview",
                    f"POST {EMAIL_PREVIEWS}",
                    {"run_id": "int", "replayed": "bool"},
                    body={"client_ids": ["$client_id"], "name": "Before sending"},
                    needs=("client_ids", "client_ids.0"),
                    keeps={"run_id": "run_id"},
                ),
                Row(
                    "getInboxPreviewJob",
                    f"GET {EMAIL_PREVIEWS}/{{run_id}}",
                    s.PREVIEW_JOB,
                ),
                Row(
                    "getInboxPreviewCapture",
                    f"GET {EMAIL_PREVIEWS}/{{run_id}}/captures/{{client_id}}",
                    s.Image(),
                    query={"variant": "screenshot", "key": "default"},
                ),
            ],
            ids={**EMAIL, "run_id": "$run_id", "client_id": "$client_id"},
        ),
        Row(
            "listInboxPreviewJobs",
            "GET /v1/design_studio/inbox_previews/jobs",
            {
                "preview_jobs": s.some(s.LISTED_JOB),
                "meta": {"pagination": {"limit": "int", "next_cursor?": "str"}},
            },
            query={"node_id": "$email", "limit": 10},
        ),
    ]
)
