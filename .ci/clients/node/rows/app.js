// APIClient: what every method answers and leaves on the server.

import assert from 'node:assert/strict';

import { asJson, assertHas, eventually } from '../expect.js';
import { onlyRecord, record } from '../fake.js';

const PEOPLE = {
  1: { email: 'bob@example.com', plan: 'pro', age: 30, vip: true },
  2: { email: 'ann+news@example.com', plan: 'basic' },
};

const identifyPeople = async ({ track }) => {
  for (const [id, attributes] of Object.entries(PEOPLE)) {
    await track.identify(id, attributes);
  }
};

// --- transactional messages -------------------------------------------------

const TEMPLATE = {
  transactional_message_id: 'welcome',
  identifiers: { id: '1' },
  message_data: { name: 'Bob', items: [{ name: 'shoes', price: '59.99' }] },
};

const SENDS = [
  {
    method: 'sendEmail',
    request: 'SendEmailRequest',
    channel: 'email',
    options: { ...TEMPLATE, to: 'bob@example.com' },
  },
  {
    method: 'sendEmail',
    title: 'with a body of its own',
    request: 'SendEmailRequest',
    channel: 'email',
    options: {
      to: 'bob@example.com',
      from: 'shop@example.com',
      subject: 'Grüße aus Köln',
      body: '<p>Hi Bob</p>',
      identifiers: { email: 'bob@example.com' },
      headers: { 'X-Order': '7' },
      bcc: 'archive@example.com',
      tracked: false,
    },
  },
  {
    method: 'sendPush',
    request: 'SendPushRequest',
    channel: 'push',
    options: { ...TEMPLATE, to: 'last_used', title: 'Hi', message: 'There', custom_data: { screen: 'home' } },
  },
  { method: 'sendSMS', request: 'SendSMSRequest', channel: 'sms', options: { ...TEMPLATE, to: '+15551234567' } },
  { method: 'sendInboxMessage', request: 'SendInboxMessageRequest', channel: 'inbox_message', options: TEMPLATE },
  { method: 'sendInApp', request: 'SendInAppRequest', channel: 'in_app', options: TEMPLATE },
];

function queued(answer) {
  assert.equal(typeof answer.delivery_id, 'string');
  assert.ok(Number.isInteger(answer.queued_at));
  assert.equal(answer.queued, true);
}

async function deliveryHoldsTheRequest(channel, { delivery_id }, [request]) {
  const delivery = await record('deliveries', delivery_id);
  assertHas(delivery, { delivery_id, channel });
  assert.deepEqual(delivery.message, asJson(request.message));
  assertHas(await onlyRecord('deliveries', { channel }), { delivery_id });
}

const sendRow = ({ method, title = 'by template', request, channel, options }) => ({
  method,
  title: `queues the message ${title}`,
  args: ({ sdk }) => [new sdk[request](options)],
  answer: queued,
  effect: (clients, answer, args) => deliveryHoldsTheRequest(channel, answer, args),
});

const RECEIPT = Buffer.from([0x25, 0x50, 0x44, 0x46, 0x00, 0xff]);

const attachmentsRow = {
  method: 'sendEmail',
  title: 'queues attachments',
  args: ({ sdk }) => {
    const request = new sdk.SendEmailRequest({ ...TEMPLATE, to: 'bob@example.com' });
    request.attach('receipt.pdf', RECEIPT);
    request.attach('note ü.txt', Buffer.from('hello').toString('base64'), { encode: false });
    return [request];
  },
  answer: queued,
  effect: async (clients, { delivery_id }) => {
    const { attachments } = (await record('deliveries', delivery_id)).message;
    assert.deepEqual(Buffer.from(attachments['receipt.pdf'], 'base64'), RECEIPT);
    assert.equal(attachments['note ü.txt'], 'aGVsbG8=');
  },
};

const newRecipientRow = {
  method: 'sendEmail',
  title: 'creates the recipient',
  args: ({ sdk }) => [
    new sdk.SendEmailRequest({ ...TEMPLATE, to: 'new@example.com', identifiers: { id: 'newcomer' } }),
  ],
  answer: queued,
  effect: async () => assertHas(await onlyRecord('customers'), { id: 'newcomer' }),
};

const inSeconds = (delay) => Math.floor(Date.now() / 1000) + delay;

const scheduledRow = {
  method: 'sendEmail',
  title: 'repeats the time of a scheduled message',
  args: ({ sdk }) => [new sdk.SendEmailRequest({ ...TEMPLATE, to: 'bob@example.com', send_at: inSeconds(3600) })],
  answer: queued,
  effect: (clients, answer, [request]) => assert.equal(answer.send_at, request.message.send_at),
};

// --- people -----------------------------------------------------------------

const cioIdOf = async (id) => (await record('customers', id)).cio_id;

const lookupRow = (title, email, ids) => ({
  method: 'getCustomersByEmail',
  title,
  given: identifyPeople,
  args: () => [email],
  effect: async (clients, { results }) => {
    const expected = ids.map(async (id) => ({ email: PEOPLE[id].email, id, cio_id: await cioIdOf(id) }));
    assert.deepEqual(results, await Promise.all(expected));
  },
});

const BOB_AS_TEXT = { id: '1', email: 'bob@example.com', plan: 'pro', age: '30', vip: 'true' };

const attributesRow = (title, args) => ({
  method: 'getAttributes',
  title,
  given: identifyPeople,
  args,
  effect: async (clients, { customer }) => {
    assertHas(customer, { id: '1', attributes: BOB_AS_TEXT, unsubscribed: false, devices: [] });
    assert.deepEqual(Object.keys(customer.timestamps).sort(), Object.keys(customer.attributes).sort());
  },
});

// --- broadcasts -------------------------------------------------------------

const BROADCASTS = [
  { title: 'a segment', recipients: { segment: { id: 7 } }, payload: { recipients: { segment: { id: 7 } } } },
  {
    title: 'a filter',
    recipients: { and: [{ attribute: { field: 'plan', operator: 'eq', value: 'pro' } }] },
    payload: { recipients: { and: [{ attribute: { field: 'plan', operator: 'eq', value: 'pro' } }] } },
  },
  { title: 'ids', recipients: { ids: ['1', '2'] }, payload: { ids: ['1', '2'] } },
  {
    title: 'emails of which one is unknown',
    recipients: { emails: ['bob@example.com', 'ghost@example.com'], email_ignore_missing: true },
    payload: { emails: ['bob@example.com', 'ghost@example.com'], email_ignore_missing: true },
  },
  {
    title: 'data per person',
    recipients: { per_user_data: [{ id: '1', data: { voucher: 'A1' } }] },
    payload: { per_user_data: [{ id: '1', data: { voucher: 'A1' } }] },
  },
];

const broadcastRow = ({ title, recipients, payload }) => ({
  method: 'triggerBroadcast',
  title: `triggers a broadcast to ${title}`,
  given: identifyPeople,
  args: () => [12, { headline: 'Roadrunner spotted' }, recipients],
  answer: ({ id }) => assert.ok(Number.isInteger(id)),
  effect: async (clients, { id }) => {
    const broadcast = await onlyRecord('broadcasts');
    assert.deepEqual([String(broadcast.id), String(broadcast.campaign_id)], [String(id), '12']);
    assert.deepEqual(broadcast.payload, { data: { headline: 'Roadrunner spotted' }, ...payload });
  },
});

const plannedAudienceRow = {
  ...broadcastRow({ title: 'the audience it was planned for', recipients: {}, payload: {} }),
  // 4.x sends the empty filter, which is refused.
  versions: ['5.0.1', '5.2.0'],
};

// --- exports ----------------------------------------------------------------

const PRO_PLAN = { and: [{ attribute: { field: 'plan', operator: 'eq', value: 'pro' } }] };

const exportPeople = async (clients) => {
  await identifyPeople(clients);
  const created = await clients.app.createCustomersExport(PRO_PLAN);
  return created.export.id;
};

const sendWelcome = async ({ app, sdk }) => {
  await app.sendEmail(new sdk.SendEmailRequest({ ...TEMPLATE, to: 'bob@example.com' }));
};

const finishedExport = ({ app }, id) =>
  eventually(
    () => app.getExport(id),
    (answer) => answer.export.status !== 'pending',
  );

async function exportFinishes(clients, answer) {
  const finished = await finishedExport(clients, answer.export.id);
  assertHas(finished.export, { id: answer.export.id, status: 'done' });
}

async function csvOf({ url }) {
  const response = await fetch(url);
  assert.equal(response.status, 200);
  return response.text();
}

const EXPORT_ROWS = [
  {
    method: 'listExports',
    title: 'answers null while there are none',
    args: () => [],
    answer: (answer) => assert.deepEqual(answer, { exports: null }),
  },
  {
    method: 'listExports',
    title: 'lists the exports made',
    given: exportPeople,
    args: () => [],
    effect: async (clients, answer) => {
      assert.deepEqual(
        answer.exports.map(({ type }) => type),
        ['customers'],
      );
    },
  },
  {
    method: 'getExport',
    title: 'shows an export until it is done',
    given: exportPeople,
    args: (clients, id) => [id],
    answer: (answer) => assertHas(answer.export, { type: 'customers' }),
    effect: exportFinishes,
  },
  {
    method: 'downloadExport',
    title: 'links to a CSV of the people who match',
    given: async (clients) => {
      const id = await exportPeople(clients);
      await finishedExport(clients, id);
      return id;
    },
    args: (clients, id) => [id],
    effect: async (clients, answer) => {
      assert.equal(answer.link, answer.url);
      const csv = await csvOf(answer);
      assert.match(csv, /bob@example\.com/);
      assert.doesNotMatch(csv, /ann\+news@example\.com/);
    },
  },
  {
    method: 'createCustomersExport',
    title: 'starts an export of people',
    given: identifyPeople,
    args: () => [PRO_PLAN],
    answer: (answer) => assertHas(answer.export, { type: 'customers', status: 'pending' }),
    effect: exportFinishes,
  },
  {
    method: 'createDeliveriesExport',
    title: 'starts an export of deliveries',
    given: sendWelcome,
    args: ({ sdk }) => [
      1,
      { start: 1666950084, end: 1666960084, metric: sdk.DeliveryExportMetric.Attempted, drafts: false },
    ],
    answer: (answer) => assertHas(answer.export, { type: 'deliveries', status: 'pending' }),
    effect: exportFinishes,
  },
];

const ROWS = [
  ...SENDS.map(sendRow),
  attachmentsRow,
  newRecipientRow,
  scheduledRow,
  lookupRow('finds the person', 'bob@example.com', ['1']),
  lookupRow('finds an address with a plus sign', 'ann+news@example.com', ['2']),
  lookupRow('answers an empty list for nobody', 'ghost@example.com', []),
  attributesRow('reads a person by id', () => ['1']),
  attributesRow('reads a person by email', ({ sdk }) => ['bob@example.com', sdk.IdentifierType.Email]),
  attributesRow('reads a person by cio_id', async ({ sdk }) => [await cioIdOf('1'), sdk.IdentifierType.CioId]),
  ...BROADCASTS.map(broadcastRow),
  plannedAudienceRow,
  ...EXPORT_ROWS,
];

export const APP_ROWS = ROWS.map((row) => ({ client: 'app', ...row }));
