// What the newest client does when things go wrong: which calls it repeats, when, and how often.

import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';

import sdk from 'node-5.2.0';

import { FAKE_URL, addFault, records, reset } from './fake.js';
import { KEYS } from './sdks.js';

const IDENTIFY = 'PUT /api/v1/customers/{identifier}';
const SEND = 'POST /v1/send/email';

// The client's own policy, but for the wait before a retry, which would be 200 ms.
const QUICK = { minTimeoutMs: 10 };
const optionsFor = (path, retry) => ({ url: new URL(path, FAKE_URL).href, retry: { ...QUICK, ...retry } });
const track = (retry) => new sdk.TrackClient(KEYS.siteId, KEYS.apiKey, optionsFor('/api/v1', retry));
const app = (retry) => new sdk.APIClient(KEYS.appKey, optionsFor('/v1', retry));

const email = () =>
  new sdk.SendEmailRequest({
    to: 'ada@example.com',
    from: 'us@example.com',
    subject: 'Hi',
    body: 'x',
    identifiers: { id: '1' },
  });

/** How often a rule has fired. */
const firedBy = async ({ id }) => (await records('faults')).find((fault) => fault.id === id).fired;

/** How long a call takes, in milliseconds. */
async function timed(call) {
  const begun = performance.now();
  await call();
  return performance.now() - begun;
}

const hasStatus = (status) => (error) => error instanceof sdk.CustomerIORequestError && error.statusCode === status;

describe('retries of customerio-node 5.2.0', () => {
  beforeEach(reset);

  test('503 is tried again until it is over', async () => {
    const fault = await addFault({ match: { operation: IDENTIFY }, status: 503, times: 2 });
    await track().identify('1', { plan: 'free' });
    assert.equal(await firedBy(fault), 2);
    const [person, ...others] = await records('customers');
    assert.equal(person.attributes.plan, 'free');
    assert.deepEqual(others, []);
  });

  test('503 that never ends is given up after three retries', async () => {
    const fault = await addFault({ match: { operation: IDENTIFY }, status: 503 });
    await assert.rejects(track().identify('1'), hasStatus(503));
    assert.equal(await firedBy(fault), 4);
    assert.deepEqual(await records('customers'), []);
  });

  test('Retry-After is honoured', async () => {
    await addFault({ match: { operation: IDENTIFY }, status: 503, times: 1 });
    const unasked = await timed(() => track().identify('1'));
    await addFault({ match: { operation: IDENTIFY }, status: 429, retry_after: 1, times: 1 });
    const asked = await timed(() => track().identify('1'));
    assert.ok(unasked < 900, `${unasked} ms without Retry-After`);
    assert.ok(asked >= 990, `${asked} ms with a Retry-After of 1 s`);
  });

  test('400 is given up at once', async () => {
    const body = { meta: { errors: ['no'] } };
    const fault = await addFault({ match: { operation: IDENTIFY }, status: 400, body });
    await assert.rejects(track().identify('1'), hasStatus(400));
    assert.equal(await firedBy(fault), 1);
  });

  for (const effect of [{ reset: true }, { empty: true }, { truncate: 5 }, { status: 503 }]) {
    const [name] = Object.keys(effect);
    test(`an answer lost after the write (${name}) sends twice`, async () => {
      await addFault({ match: { operation: SEND }, when: 'after', times: 1, ...effect });
      const { delivery_id: id } = await app().sendEmail(email());
      const deliveries = await records('deliveries');
      assert.equal(deliveries.length, 2);
      assert.equal(deliveries[1].delivery_id, id);
    });
  }

  test('an answer lost before the write sends once', async () => {
    await addFault({ match: { operation: SEND }, reset: true, times: 1 });
    await app().sendEmail(email());
    assert.equal((await records('deliveries')).length, 1);
  });

  test('a hang ends with the timeout of the client, which then tries again', async () => {
    await addFault({ match: { operation: SEND }, hang: true, when: 'after', times: 1 });
    const client = new sdk.APIClient(KEYS.appKey, { ...optionsFor('/v1'), timeout: 300 });
    await client.sendEmail(email());
    assert.equal((await records('deliveries')).length, 2);
  });
});
