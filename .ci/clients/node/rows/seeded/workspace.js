// What belongs to a workspace as a whole.

import { anyOrder, includes, isFilled, isId, isText, isTime, withItem } from '../../expect.js';
import { SEED } from '../../seed.js';

const CITIES = [{ name: 'Vienna' }, { name: 'Graz' }];

const [HOLIDAYS] = SEED.collections;

const contentOfNew = ({ collection }) => [collection.id];

const COLLECTION_ROWS = [
  { method: 'listCollections', args: [], answers: { collections: [{ id: 1, name: HOLIDAYS.name, rows: 2 }] } },
  {
    method: 'createCollection',
    args: [{ name: 'cities', data: CITIES }],
    answers: { collection: { id: isId, name: 'cities', rows: 2, schema: ['name'], bytes: isId, created_at: isTime } },
    leaves: ['getCollectionContent', contentOfNew, CITIES],
  },
  {
    method: 'createCollection',
    title: 'fetches the rows from a URL',
    args: (prepared, { fileUrl }) => [{ name: 'cities', url: fileUrl('cities') }],
    answers: { collection: { name: 'cities' } },
    leaves: ['getCollectionContent', contentOfNew, [{ name: 'Rome' }, { name: 'Siena' }]],
    later: true,
  },
  {
    method: 'getCollection',
    args: [1],
    answers: { collection: { id: 1, name: HOLIDAYS.name, rows: 2, schema: anyOrder(['eventName', 'eventDate']) } },
  },
  {
    method: 'updateCollection',
    args: [1, { name: 'cities', data: CITIES.slice(1) }],
    answers: { collection: { id: 1, name: 'cities', rows: 1 } },
    leaves: ['getCollectionContent', [1], CITIES.slice(1)],
  },
  { method: 'deleteCollection', args: [1], gone: ['getCollection', [1]] },
  { method: 'getCollectionContent', args: [1], answers: HOLIDAYS.content },
  {
    method: 'updateCollectionContent',
    args: [1, CITIES],
    answers: { collection: { id: 1, name: HOLIDAYS.name, rows: 2, schema: ['name'] } },
    leaves: ['getCollectionContent', [1], CITIES],
  },
];

const GONE = 'gone+1@example.com';

const bounce = ({ app }) => app.createSuppression('bounces', GONE);

const bounced = {
  category: 'bounces',
  suppressions: [{ email: GONE, created: isTime, reason: isText, status: isText }],
};

const bounces = (suppressions) => ['getSuppressions', ['bounces'], { suppressions }];

const SUPPRESSION_ROWS = [
  { method: 'searchSuppression', given: bounce, args: [GONE], answers: bounced },
  { method: 'getSuppressions', given: bounce, args: ['bounces', { limit: 10, offset: 0 }], answers: bounced },
  {
    method: 'getSuppressions',
    title: 'skips what comes before the offset',
    given: bounce,
    args: ['bounces', { offset: 1 }],
    answers: { suppressions: [] },
  },
  {
    method: 'getDomainSuppressions',
    given: bounce,
    args: ['example.com', 'bounces', { email: GONE }],
    answers: { ...bounced, next: '' },
  },
  { method: 'createSuppression', args: ['bounces', GONE], leaves: bounces(withItem({ email: GONE })) },
  { method: 'deleteSuppression', given: bounce, args: ['bounces', GONE], leaves: bounces([]) },
];

const WEBHOOK = {
  name: 'To the warehouse',
  endpoint: 'https://user:secret@example.com/events',
  events: ['email_sent', 'customer_subscribed'],
};

const isWebhook = { ...WEBHOOK, id: isId, disabled: false, full_resolution: false, with_content: false };

const createWebhook = async ({ app }) => (await app.createReportingWebhook(WEBHOOK)).id;

const WEBHOOK_ROWS = [
  {
    method: 'listReportingWebhooks',
    given: createWebhook,
    args: [],
    answers: { reporting_webhooks: [isWebhook] },
  },
  {
    method: 'createReportingWebhook',
    args: [WEBHOOK],
    answers: isWebhook,
    leaves: ['listReportingWebhooks', [], { reporting_webhooks: [isWebhook] }],
  },
  { method: 'getReportingWebhook', given: createWebhook, args: (id) => [id], answers: isWebhook },
  {
    method: 'updateReportingWebhook',
    given: createWebhook,
    args: (id) => [id, { disabled: true, events: ['email_opened'] }],
    answers: { ...isWebhook, disabled: true, events: ['email_opened'] },
    leaves: ['getReportingWebhook', (answer, id) => [id], { disabled: true, events: ['email_opened'] }],
  },
  {
    method: 'deleteReportingWebhook',
    given: createWebhook,
    args: (id) => [id],
    gone: ['getReportingWebhook', (answer, id) => [id]],
  },
];

const [FOOTER] = SEED.snippets;
const GREETING = { name: 'greeting', value: 'Hello {{customer.name}}' };

const snippets = (...items) => ['getSnippets', [], { snippets: items }];

const SNIPPET_ROWS = [
  { method: 'getSnippets', args: [], answers: { snippets: [{ ...FOOTER, updated_at: isTime }] } },
  {
    method: 'createSnippet',
    args: [GREETING],
    answers: { snippet: { ...GREETING, updated_at: isTime } },
    leaves: ['getSnippets', [], { snippets: withItem(GREETING) }],
  },
  {
    method: 'updateSnippet',
    args: [{ ...FOOTER, value: 'Shop, 2 Market Street' }],
    answers: { snippet: { name: FOOTER.name, value: 'Shop, 2 Market Street' } },
    leaves: snippets({ name: FOOTER.name, value: 'Shop, 2 Market Street' }),
  },
  { method: 'deleteSnippet', args: [FOOTER.name], leaves: snippets() },
];

const SENDER_ROWS = [
  { method: 'getSenderIdentities', args: [], answers: { sender_identities: SEED.sender_identities } },
  {
    method: 'getSenderIdentities',
    title: 'turns the page',
    args: [{ limit: 1, sort: 'asc' }],
    answers: { sender_identities: SEED.sender_identities.slice(0, 1), next: isText },
  },
  { method: 'getSenderIdentity', args: [2], answers: { sender_identity: SEED.sender_identities[1] } },
  {
    method: 'getSenderIdentityUsedBy',
    args: [1],
    answers: { campaigns: includes(1), sent_newsletters: [30], draft_newsletters: [] },
  },
];

const identifyAcme = ({ track }) =>
  track.entity({ type: 'object', action: 'identify', identifiers: { object_type_id: '1', object_id: 'acme' } });

const IMPORTS = [
  {
    file: 'people',
    request: { type: 'people', identifier: 'id', data_to_process: 'all' },
    leaves: ['getAttributes', ['lin'], { customer: { attributes: { email: 'lin@example.com', plan: 'pro' } } }],
  },
  {
    file: 'events',
    request: { type: 'event', identifier: 'email' },
    leaves: ['listActivities', [{ name: 'order_imported', type: 'event' }], { activities: [{ customer_id: 'ada' }] }],
  },
  {
    file: 'objects',
    request: { type: 'object', object_type_id: '1', data_to_process: 'only_new' },
    leaves: ['getObjectAttributes', [1, 'globex'], { object: { attributes: { name: 'Globex' } } }],
  },
  {
    file: 'relationships',
    request: { type: 'relationship', identifier: 'id', object_type_id: '1' },
    given: identifyAcme,
    leaves: [
      'getCustomerRelationships',
      ['ada'],
      { cio_relationships: [{ identifiers: { object_id: 'acme' }, attributes: { role: 'buyer' } }] },
    ],
  },
];

const importRow = ({ file, request, given, leaves }) => ({
  method: 'createImport',
  title: `brings in ${file}`,
  given,
  args: (prepared, { fileUrl }) => [{ name: `Some ${file}`, data_file_url: fileUrl(file), ...request }],
  answers: { import: { id: isId, name: `Some ${file}`, type: request.type, state: isText } },
  leaves,
  later: true,
});

async function importPeople({ app, fileUrl }) {
  const request = { name: 'Some people', data_file_url: fileUrl('people'), type: 'people', identifier: 'id' };
  const answer = await app.createImport(request);
  return answer.import.id;
}

const IMPORT_ROWS = [
  ...IMPORTS.map(importRow),
  {
    method: 'getImport',
    given: importPeople,
    args: (id) => [id],
    answers: { import: { id: isId, name: 'Some people', type: 'people', state: isText } },
    leaves: [
      'getImport',
      (answer, id) => [id],
      { import: { state: 'imported', rows_to_import: 1, rows_imported: 1 } },
    ],
    later: true,
  },
];

const ACCOUNT_ROWS = [
  { method: 'listWorkspaces', args: [], answers: { workspaces: [{ name: 'Shop', people: 3, object_types: 1 }] } },
  { method: 'getIpAddresses', args: [], answers: { ip_addresses: isFilled } },
];

export const WORKSPACE_ROWS = [
  ...COLLECTION_ROWS,
  ...SUPPRESSION_ROWS,
  ...WEBHOOK_ROWS,
  ...SNIPPET_ROWS,
  ...SENDER_ROWS,
  ...IMPORT_ROWS,
  ...ACCOUNT_ROWS,
];
