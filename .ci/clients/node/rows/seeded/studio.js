// Design Studio and assets.

import assert from 'node:assert/strict';

import { isId, isTime, isUrl, isUuid, lacks, withItem } from '../../expect.js';

const idOf = (kind) => (answer) => [answer[kind].id];
const prepared = (answer, id) => [id];
const justId = (id) => [id];

// --- Design Studio ----------------------------------------------------------

const page = (total, limit = 1000) => ({ pagination: { page: 1, limit, total } });

const createFolder = async ({ app }) => (await app.createDesignStudioFolder({ name: 'Spring' })).folder.id;

const isFolder = { id: isUuid, name: 'Spring', parent_folder_id: null, created: isTime, updated: isTime };

const FOLDER_ROWS = [
  {
    method: 'listDesignStudioFolders',
    given: createFolder,
    args: [{ sortBy: 'name', sortOrder: 'desc', createdAfter: 1, limit: 10 }],
    answers: {
      folders: [isFolder],
      meta: { ...page(1, 10), filters: { sort_by: 'name', sort_order: 'desc', created_after: 1 } },
    },
  },
  {
    method: 'createDesignStudioFolder',
    args: [{ name: 'Spring' }],
    answers: { folder: isFolder },
    leaves: ['getDesignStudioFolder', idOf('folder'), { folder: isFolder }],
  },
  { method: 'getDesignStudioFolder', given: createFolder, args: justId, answers: { folder: isFolder } },
  {
    method: 'updateDesignStudioFolder',
    given: createFolder,
    args: (id) => [id, { name: 'Summer' }],
    leaves: ['getDesignStudioFolder', prepared, { folder: { name: 'Summer', parent_folder_id: null } }],
  },
  {
    method: 'deleteDesignStudioFolder',
    given: createFolder,
    args: justId,
    gone: ['getDesignStudioFolder', prepared],
  },
];

const BUTTON = { name: 'Button', tag: 'x-button', content: '<a><slot></slot></a>' };

const createComponent = async ({ app }) => (await app.createDesignStudioComponent(BUTTON)).component.id;

const isButton = { id: isUuid, ...BUTTON, parent_folder_id: null, created: isTime, updated: isTime };

const COMPONENT_ROWS = [
  {
    method: 'listDesignStudioComponents',
    given: createComponent,
    args: [{ tag: 'x-button' }],
    answers: { components: [{ name: 'Button', tag: 'x-button' }], folders: [], meta: page(1) },
  },
  {
    method: 'listDesignStudioComponents',
    title: 'leaves the content out',
    given: createComponent,
    args: [],
    answers: { components: [lacks('content')] },
  },
  {
    method: 'createDesignStudioComponent',
    args: [BUTTON],
    answers: { component: isButton },
    leaves: ['getDesignStudioComponent', idOf('component'), { component: isButton }],
  },
  { method: 'getDesignStudioComponent', given: createComponent, args: justId, answers: { component: isButton } },
  {
    method: 'updateDesignStudioComponent',
    given: createComponent,
    args: (id) => [id, { content: '<b></b>' }],
    leaves: ['getDesignStudioComponent', prepared, { component: { ...BUTTON, content: '<b></b>' } }],
  },
  {
    method: 'deleteDesignStudioComponent',
    given: createComponent,
    args: justId,
    gone: ['getDesignStudioComponent', prepared],
  },
];

const EMAIL = {
  name: 'Hi',
  content: { subject: 'Hi {{customer.name}}', html: '<html><body><p>Hi</p></body></html>' },
  envelope: { from_id: 1, headers: [{ name: 'X-Shop', value: '1' }] },
  transformers: { css_inliner: { enabled: true } },
};

const isEmail = {
  id: isUuid,
  ...EMAIL,
  envelope: { ...EMAIL.envelope, recipient: '{{customer.email}}', fake_bcc: true },
  is_template: false,
  is_linked: false,
  parent_folder_id: null,
  created: isTime,
};

const createEmail = async ({ app }) => (await app.createDesignStudioEmail(EMAIL)).email.id;

const EMAIL_ROWS = [
  {
    method: 'listDesignStudioEmails',
    given: createEmail,
    args: [{ isTemplate: 'any', hasTranslations: 'false', isLinked: 'false' }],
    answers: {
      emails: [{ id: isUuid, name: 'Hi', is_template: false, is_linked: false, has_translations: false }],
      folders: [],
      meta: page(1),
    },
  },
  {
    method: 'listDesignStudioEmails',
    title: 'looks into one folder only',
    given: async (clients) => {
      await createEmail(clients);
      return createFolder(clients);
    },
    args: (folder) => [{ parentFolderId: folder }],
    answers: { emails: [], meta: page(0) },
  },
  {
    method: 'createDesignStudioEmail',
    args: [EMAIL],
    answers: { email: isEmail },
    leaves: ['getDesignStudioEmail', idOf('email'), { email: isEmail }],
  },
  { method: 'getDesignStudioEmail', given: createEmail, args: justId, answers: { email: isEmail } },
  {
    method: 'updateDesignStudioEmail',
    given: createEmail,
    args: (id) => [id, { name: 'Hello', is_template: true }],
    leaves: ['getDesignStudioEmail', prepared, { email: { ...isEmail, name: 'Hello', is_template: true } }],
  },
  { method: 'deleteDesignStudioEmail', given: createEmail, args: justId, gone: ['getDesignStudioEmail', prepared] },
];

const SPANISH = { language: 'es', content: { subject: 'Hola', html: '<p>Hola</p>' } };

const createSpanish = async (clients) => {
  const id = await createEmail(clients);
  await clients.app.createDesignStudioEmailLanguage(id, SPANISH);
  return id;
};

const isSpanish = { ...SPANISH, language_group_id: isUuid, is_linked: false };
const inSpanish = (id) => [id, 'es'];
const stillSpanish = (answer, id) => [id, 'es'];

const LANGUAGE_ROWS = [
  {
    method: 'listDesignStudioEmailLanguages',
    given: createSpanish,
    args: justId,
    answers: { email_translations: withItem(isSpanish) },
  },
  {
    method: 'createDesignStudioEmailLanguage',
    given: createEmail,
    args: (id) => [id, SPANISH],
    answers: { email_translation: isSpanish },
    leaves: ['getDesignStudioEmailLanguage', stillSpanish, { email_translation: isSpanish }],
  },
  {
    method: 'getDesignStudioEmailLanguage',
    given: createSpanish,
    args: inSpanish,
    answers: { email_translation: isSpanish },
  },
  {
    method: 'updateDesignStudioEmailLanguage',
    given: createSpanish,
    args: (id) => [id, 'es', { content: { subject: 'Buenas' } }],
    leaves: ['getDesignStudioEmailLanguage', stillSpanish, { email_translation: { content: { subject: 'Buenas' } } }],
  },
  {
    method: 'deleteDesignStudioEmailLanguage',
    given: createSpanish,
    args: inSpanish,
    gone: ['getDesignStudioEmailLanguage', stillSpanish],
  },
];

// --- assets -----------------------------------------------------------------

const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==',
  'base64',
);

const LOGO = { data: PNG, filename: 'logo ü.png' };

const isLogo = {
  id: isId,
  name: 'logo ü.png',
  path: isUrl,
  size: PNG.length,
  parent_folder_id: null,
  created: isTime,
  updated: isTime,
};

const upload = async ({ app }) => (await app.createAsset(LOGO)).asset.id;

const createAssetFolder = async ({ app }) => (await app.createAssetFolder({ name: 'Logos' })).folder.id;

const isAssetFolder = { id: isId, name: 'Logos', parent_folder_id: null, created: isTime, updated: isTime };

async function isServed({ asset }) {
  const response = await fetch(asset.path);
  assert.equal(response.headers.get('content-type'), 'image/png');
  assert.deepEqual(Buffer.from(await response.arrayBuffer()), PNG);
}

const uploadRow = (title, file) => ({
  method: 'createAsset',
  title,
  args: [{ ...LOGO, ...file }],
  answers: { asset: isLogo },
  leaves: ['getAsset', idOf('asset'), { asset: isLogo }],
  effect: isServed,
});

const ASSET_ROWS = [
  uploadRow('uploads bytes', {}),
  uploadRow('uploads a blob', { data: new Blob([PNG]) }),
  uploadRow('uploads with a type of its own', { contentType: 'image/png' }),
  {
    method: 'createAsset',
    title: 'gives the file a name and a folder',
    given: createAssetFolder,
    args: (folder) => [{ ...LOGO, name: 'Logo', parentFolderId: folder }],
    answers: { asset: { name: 'Logo', size: PNG.length, parent_folder_id: isId } },
    leaves: [
      'listAssets',
      (answer, folder) => [{ parentFolderId: folder }],
      { assets: [{ name: 'Logo' }], meta: { pagination: { total: 1 } } },
    ],
  },
  {
    method: 'listAssets',
    given: upload,
    args: [{ directDescendantsOnly: true, limit: 10 }],
    answers: {
      assets: [isLogo],
      meta: {
        filters: { parent_folder_id: null, direct_descendants_only: true },
        pagination: { page: 1, limit: 10, total: 1 },
      },
    },
  },
  { method: 'getAsset', given: upload, args: justId, answers: { asset: isLogo } },
  {
    method: 'updateAsset',
    given: upload,
    args: (id) => [id, { name: 'Old logo' }],
    leaves: ['getAsset', prepared, { asset: { ...isLogo, name: 'Old logo' } }],
  },
  { method: 'deleteAsset', given: upload, args: justId, gone: ['getAsset', prepared] },
];

const ASSET_FOLDER_ROWS = [
  {
    method: 'listAssetFolders',
    given: createAssetFolder,
    args: [{ page: 1 }],
    answers: { folders: [isAssetFolder], meta: { pagination: { page: 1, limit: 1000, total: 1 } } },
  },
  {
    method: 'createAssetFolder',
    args: [{ name: 'Logos' }],
    answers: { folder: isAssetFolder },
    leaves: ['getAssetFolder', idOf('folder'), { folder: isAssetFolder }],
  },
  { method: 'getAssetFolder', given: createAssetFolder, args: justId, answers: { folder: isAssetFolder } },
  {
    method: 'updateAssetFolder',
    given: createAssetFolder,
    args: (id) => [id, { name: 'Pictures' }],
    leaves: ['getAssetFolder', prepared, { folder: { ...isAssetFolder, name: 'Pictures' } }],
  },
  { method: 'deleteAssetFolder', given: createAssetFolder, args: justId, gone: ['getAssetFolder', prepared] },
];

export const STUDIO_ROWS = [
  ...FOLDER_ROWS,
  ...COMPONENT_ROWS,
  ...EMAIL_ROWS,
  ...LANGUAGE_ROWS,
  ...ASSET_ROWS,
  ...ASSET_FOLDER_ROWS,
];
