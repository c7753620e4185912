// PipelinesClient: what every method leaves on the server.

import assert from 'node:assert/strict';

import { assertHas } from '../expect.js';
import { onlyRecord, records } from '../fake.js';

/** One payload per kind of call; the Pipelines clients share them. */
export const PIPELINE_CALLS = {
  identify: { userId: '1', traits: { email: 'bob@example.com', plan: 'pro' } },
  track: { userId: '1', event: 'Order Completed', properties: { revenue: 39.95, currency: 'EUR' } },
  page: { userId: '1', category: 'Docs', name: 'Pricing', properties: { url: 'https://example.com/pricing' } },
  screen: { anonymousId: 'visitor-1', name: 'Home', properties: { tab: 'news' } },
  group: { userId: '1', groupId: 'acme', traits: { name: 'Acme', seats: 5 } },
  alias: { userId: '1', previousId: 'visitor-1' },
};

const LIBRARY = { context: { library: { name: 'customerio-node' } } };

const accepted = (answer) => assert.deepEqual(answer, { success: true });

const callRow = ([method, payload]) => ({
  method,
  title: 'is captured with its payload',
  args: () => [payload],
  effect: async () => assertHas(await onlyRecord('pipeline-events'), { type: method, ...payload, ...LIBRARY }),
});

const BATCH = Object.entries(PIPELINE_CALLS).map(([type, payload]) => ({ type, ...payload }));

const batchRow = {
  method: 'batch',
  title: 'captures every item in its order',
  args: () => [BATCH],
  effect: async () => {
    const captured = await records('pipeline-events');
    captured.forEach((event, index) => assertHas(event, { ...BATCH[index], ...LIBRARY }));
    const { operations, source } = await onlyRecord('batches');
    assert.equal(source, 'pipelines');
    assert.deepEqual([captured.length, operations.length], [BATCH.length, BATCH.length]);
  },
};

const ROWS = [...Object.entries(PIPELINE_CALLS).map(callRow), batchRow];

export const PIPELINES_ROWS = ROWS.map((row) => ({ client: 'pipelines', answer: accepted, ...row }));
