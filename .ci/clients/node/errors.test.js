// Refusals arrive as the client's own error, with what the server had to say.

import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';

import { onlyRecord, records, reset } from './fake.js';
import { KEYS, SDKS, connect } from './sdks.js';

const NO_KEYS = { ...KEYS, siteId: '', apiKey: '', appKey: '' };

const IDENTIFIERS = { id: '1' };

const missing = (field) => ({ status: 400, message: `Missing required field: "${field}"` });

const send = (method, request, options, refusal) => ({
  title: `${method} without a required field`,
  client: 'app',
  method,
  args: (sdk) => [new sdk[request](options)],
  ...refusal,
});

// `message` is what the client has to say, `says` a part of it: an App 404 quotes
// a reference that is new every time.
const REFUSALS = [
  send('sendEmail', 'SendEmailRequest', { transactional_message_id: 1, identifiers: IDENTIFIERS }, missing('to')),
  send('sendPush', 'SendPushRequest', { identifiers: IDENTIFIERS }, missing('transactional_message_id')),
  send('sendSMS', 'SendSMSRequest', { transactional_message_id: 1, identifiers: IDENTIFIERS }, missing('to')),
  send('sendInboxMessage', 'SendInboxMessageRequest', { transactional_message_id: 1 }, missing('identifiers')),
  send('sendInApp', 'SendInAppRequest', { transactional_message_id: 1 }, missing('identifiers')),
  {
    title: 'an attachment that is not base64',
    client: 'app',
    method: 'sendEmail',
    args: (sdk) => {
      const request = new sdk.SendEmailRequest({
        to: 'a@example.com',
        transactional_message_id: 1,
        identifiers: IDENTIFIERS,
      });
      request.attach('note.txt', '*not base64*', { encode: false });
      return [request];
    },
    status: 400,
    message: 'Attachment must be base64 encoded: "note.txt"',
  },
  {
    title: 'an attribute of more than 1000 bytes',
    client: 'track',
    method: 'identify',
    args: () => ['1', { bio: 'x'.repeat(1001) }],
    status: 400,
    message: "1 error:\n  - value for attribute 'bio' cannot be longer than 1000 bytes",
  },
  {
    title: 'attributes of an unknown person',
    client: 'app',
    method: 'getAttributes',
    args: () => ['nobody'],
    status: 404,
    says: /not found/,
  },
  {
    title: 'an id looked up as an email',
    client: 'app',
    method: 'getAttributes',
    given: ({ track }) => track.identify('1'),
    args: (sdk) => ['1', sdk.IdentifierType.Email],
    status: 404,
    says: /not found/,
  },
  {
    title: 'an unknown export',
    client: 'app',
    method: 'getExport',
    args: () => [404404],
    status: 404,
    says: /not found/,
  },
  {
    title: 'the file of an unknown export',
    client: 'app',
    method: 'downloadExport',
    args: () => [404404],
    status: 404,
    says: /not found/,
  },
  {
    title: 'a broadcast to people nobody knows',
    client: 'app',
    method: 'triggerBroadcast',
    args: () => [12, {}, { ids: ['nobody'] }],
    status: 422,
    says: /Errors were found while processing per user data/,
  },
  {
    // 5.x leaves an empty filter out of the request.
    title: 'a broadcast with an empty filter',
    versions: ['4.1.1', '4.5.1'],
    client: 'app',
    method: 'triggerBroadcast',
    args: () => [12, {}, {}],
    status: 422,
    says: /empty recipients filter is not valid/,
  },
  {
    title: 'Track without credentials',
    keys: NO_KEYS,
    client: 'track',
    method: 'identify',
    args: () => ['1'],
    status: 401,
    message: 'Unauthorized request',
  },
  {
    title: 'App without credentials',
    keys: NO_KEYS,
    client: 'app',
    method: 'listExports',
    args: () => [],
    status: 401,
    message: 'Unauthorized request',
  },
  {
    title: 'a Pipelines item without a name in strict mode',
    versions: ['5.0.1', '5.2.0'],
    pipelines: { strictMode: true },
    client: 'pipelines',
    method: 'batch',
    args: () => [[{ type: 'track', userId: '1' }]],
    status: 400,
    says: /event/,
  },
];

async function refusalOf(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  return assert.fail('the call was accepted');
}

async function checkRefusal(entry, { client, method, given, args, keys, pipelines, status, message, says = /./ }) {
  const { sdk } = entry;
  await given?.(connect(entry));
  const clients = connect(entry, { keys, pipelines });
  const error = await refusalOf(() => clients[client][method](...args(sdk)));
  assert.ok(error instanceof sdk.CustomerIORequestError, `${error.stack}`);
  assert.equal(error.statusCode, status, error.body);
  assert.equal(error.message, message ?? error.message);
  assert.match(error.message, says);
}

const appliesTo =
  ({ version, sdk }) =>
  ({ versions = [version], client, method }) =>
    versions.includes(version) && (client !== 'app' || method in sdk.APIClient.prototype);

for (const entry of SDKS) {
  describe(`customerio-node ${entry.version}`, () => {
    beforeEach(reset);

    for (const refusal of REFUSALS.filter(appliesTo(entry))) {
      test(`refuses ${refusal.title}`, () => checkRefusal(entry, refusal));
    }

    test('a refused send queues nothing', async () => {
      const { app, sdk } = connect(entry);
      await refusalOf(() => app.sendEmail(new sdk.SendEmailRequest({ identifiers: IDENTIFIERS })));
      assert.deepEqual(await records('deliveries'), []);
    });
  });
}

for (const entry of SDKS.filter(({ sdk }) => sdk.PipelinesClient)) {
  test(`customerio-node ${entry.version}: Pipelines accepts a bad item outside strict mode`, async () => {
    await reset();
    const { pipelines } = connect(entry);
    await pipelines.batch([
      { type: 'track', userId: '1' },
      { type: 'track', userId: '1', event: 'Kept' },
    ]);
    assert.equal((await onlyRecord('pipeline-events', { event: 'Kept' })).userId, '1');
  });
}
