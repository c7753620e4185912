// A reporting webhook, on a real socket, as the newest client verifies it.

import assert from 'node:assert/strict';
import test from 'node:test';

import sdk from 'node-5.2.0';

import { FAKE_URL, seed } from './fake.js';
import { listen } from './listen.js';

const SIGNING_KEY = 'fake-signing-key';

test('the client verifies what the fake signs, and nothing else', async (t) => {
  await seed({});
  const { received, server, url } = await listen();
  t.after(() => server.close());
  const api = new sdk.APIClient('app-key', { url: new URL('/v1', FAKE_URL).href });
  await api.createReportingWebhook({ name: 'w', endpoint: url, events: ['email_sent'] });
  await api.sendEmail(
    new sdk.SendEmailRequest({
      to: 'ada@example.com',
      from: 'us@example.com',
      subject: 'Hi',
      body: 'x',
      identifiers: { id: '1' },
    }),
  );
  await fetch(new URL('/__parlel/webhooks/flush', FAKE_URL), { method: 'POST' });

  assert.equal(received.length, 1);
  const [{ headers, body }] = received;
  const signed = {
    signingSecret: SIGNING_KEY,
    timestamp: headers['x-cio-timestamp'],
    signature: headers['x-cio-signature'],
    body,
  };
  assert.ok(sdk.verifyRequestSignature(signed));
  assert.ok(!sdk.verifyRequestSignature({ ...signed, signingSecret: 'another key' }));
  assert.ok(!sdk.verifyRequestSignature({ ...signed, body: `${body} ` }));
});
