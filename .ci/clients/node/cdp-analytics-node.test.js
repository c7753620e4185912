// @customerio/cdp-analytics-node, which collects its calls and posts them as batches.

import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';

import { Analytics } from '@customerio/cdp-analytics-node';

import { assertHas } from './expect.js';
import { FAKE_URL, onlyRecord, records, reset } from './fake.js';
import { PIPELINE_CALLS } from './rows/pipelines.js';
import { KEYS } from './sdks.js';

const LIBRARY = { context: { library: { name: '@customerio/cdp-analytics-node' } } };

function startAnalytics(settings = {}) {
  const analytics = new Analytics({ writeKey: KEYS.writeKey, host: FAKE_URL.origin, maxRetries: 0, ...settings });
  const failures = [];
  analytics.on('error', ({ reason }) => failures.push(reason));
  return { analytics, failures };
}

/** Makes one call and waits for the library to say that it was delivered. */
const delivered = (analytics, method, payload) =>
  new Promise((resolve, reject) => {
    analytics[method](payload, (error) => (error ? reject(error) : resolve()));
  });

describe('cdp-analytics-node', () => {
  beforeEach(reset);

  for (const [method, payload] of Object.entries(PIPELINE_CALLS)) {
    test(`${method} arrives when the library is flushed`, async () => {
      const { analytics, failures } = startAnalytics();
      analytics[method](payload);
      await analytics.closeAndFlush();
      assert.deepEqual(failures, []);
      assertHas(await onlyRecord('pipeline-events'), { type: method, ...payload, ...LIBRARY });
      assertHas(await onlyRecord('batches'), { source: 'pipelines' });
    });
  }

  test('calls made together share a batch and keep their order', async () => {
    const { analytics, failures } = startAnalytics();
    const calls = Object.entries(PIPELINE_CALLS);
    calls.forEach(([method, payload]) => analytics[method](payload));
    await analytics.closeAndFlush();
    assert.deepEqual(failures, []);
    const types = (events) => events.map(({ type }) => type);
    assert.deepEqual(types(await records('pipeline-events')), Object.keys(PIPELINE_CALLS));
    assert.deepEqual(types((await onlyRecord('batches')).operations), Object.keys(PIPELINE_CALLS));
  });

  test('a full batch is posted at once', async () => {
    const { analytics } = startAnalytics({ maxEventsInBatch: 1 });
    await delivered(analytics, 'identify', PIPELINE_CALLS.identify);
    await delivered(analytics, 'track', PIPELINE_CALLS.track);
    assert.equal((await records('batches')).length, 2);
    await analytics.closeAndFlush();
  });
});
