// TrackClient: what every method leaves on the server.
//
// A row is one behaviour. `given` prepares the server, `args` builds the
// arguments of `method`, `answer` is what the call resolves to, and `effect`
// looks at the outcome. `versions` narrows a row to some versions of the client.

import assert from 'node:assert/strict';

import { asJson, assertHas } from '../expect.js';
import { onlyRecord, record, records } from '../fake.js';

const BOB = { email: 'bob@example.com', first_name: 'Bob', plan: 'basic' };

const identifyBob = ({ track }) => track.identify('1', BOB);

const addPhone = async ({ track }) => {
  await identifyBob({ track });
  await track.addDevice('1', 'phone-token', 'ios');
};

const BATCH = [
  { type: 'person', action: 'identify', identifiers: { id: '1' }, attributes: { plan: 'pro' } },
  { type: 'person', action: 'event', identifiers: { id: '1' }, name: 'signup', attributes: { source: 'web' } },
  {
    type: 'person',
    action: 'add_device',
    identifiers: { id: '1' },
    device: { token: 'phone-token', platform: 'android' },
  },
];

const ROWS = [
  {
    method: 'identify',
    title: 'creates a person',
    args: () => ['1', BOB],
    effect: async () => {
      const { email, ...attributes } = BOB;
      assertHas(await record('customers', '1'), { id: '1', identifiers: { id: '1', email }, attributes });
    },
  },
  {
    method: 'identify',
    title: 'takes a number for an id and no attributes',
    args: () => [42],
    effect: async () => assertHas(await onlyRecord('customers'), { id: '42' }),
  },
  {
    method: 'identify',
    title: 'keeps the attributes that are not sent',
    given: identifyBob,
    args: () => ['1', { plan: 'pro' }],
    effect: async () => {
      assertHas(await onlyRecord('customers'), { attributes: { first_name: 'Bob', plan: 'pro' } });
    },
  },
  {
    method: 'identify',
    title: 'removes an attribute that is null',
    given: identifyBob,
    args: () => ['1', { plan: null }],
    effect: async () => {
      const { attributes } = await onlyRecord('customers');
      assert.deepEqual([attributes.first_name, 'plan' in attributes], ['Bob', false]);
    },
  },
  {
    method: 'identify',
    title: 'changes an identifier through cio_<cio_id>',
    given: identifyBob,
    args: async () => [`cio_${(await record('customers', '1')).cio_id}`, { email: 'robert@example.com' }],
    effect: async () => {
      assertHas(await onlyRecord('customers'), { id: '1', identifiers: { email: 'robert@example.com' } });
    },
  },
  {
    method: 'identify',
    title: 'gives the person their anonymous events',
    given: ({ track }) => track.trackAnonymous('visitor-1', { name: 'browsed' }),
    args: () => ['1', { anonymous_id: 'visitor-1' }],
    effect: async () => assertHas(await onlyRecord('events', { name: 'browsed' }), { customer_id: '1' }),
  },
  {
    method: 'destroy',
    title: 'deletes the person',
    given: identifyBob,
    args: () => ['1'],
    effect: async ({ track }) => {
      assert.deepEqual(await records('customers'), []);
      await track.identify('1');
      assert.equal((await record('customers', '1')).attributes.plan, undefined);
    },
  },
  {
    method: 'destroy',
    title: 'accepts a person nobody knows',
    args: () => ['nobody'],
    effect: async () => assert.deepEqual(await records('customers'), []),
  },
  {
    method: 'suppress',
    title: 'deletes the person and ignores them from then on',
    given: identifyBob,
    args: () => ['1'],
    effect: async ({ track }) => {
      assert.ok((await records('suppressed')).includes('1'));
      assert.deepEqual(await track.identify('1', BOB), {});
      assert.deepEqual(await records('customers'), []);
    },
  },
  {
    method: 'unsuppress',
    title: 'lets a new person take the identifier',
    given: async ({ track }) => {
      await identifyBob({ track });
      await track.suppress('1');
    },
    args: () => ['1'],
    effect: async ({ track }) => {
      assert.deepEqual(await records('suppressed'), []);
      assert.deepEqual(await records('customers'), []);
      await track.identify('1', { first_name: 'Robert' });
      const { attributes } = await record('customers', '1');
      assert.deepEqual([attributes.first_name, attributes.plan], ['Robert', undefined]);
    },
  },
  {
    method: 'track',
    title: 'records an event with its data',
    given: identifyBob,
    args: () => ['1', { name: 'purchase', data: { price: 23.45, tags: ['socks', 'new'] }, timestamp: 1700000000 }],
    effect: async () => {
      assertHas(await onlyRecord('events', { name: 'purchase' }), {
        kind: 'event',
        customer_id: '1',
        data: { price: 23.45, tags: ['socks', 'new'] },
        timestamp: 1700000000,
      });
    },
  },
  {
    method: 'track',
    title: 'records an event without data',
    given: identifyBob,
    args: () => ['1', { name: 'updated' }],
    effect: async () => assertHas(await onlyRecord('events'), { kind: 'event', customer_id: '1', name: 'updated' }),
  },
  {
    method: 'track',
    title: 'records a screen event',
    given: identifyBob,
    args: () => ['1', { name: 'Settings', type: 'screen' }],
    effect: async () => assertHas(await onlyRecord('events', { kind: 'screen' }), { type: 'screen', name: 'Settings' }),
  },
  {
    method: 'trackPageView',
    title: 'records a page event',
    given: identifyBob,
    args: () => ['1', 'https://example.com/pricing?plan=pro#top'],
    effect: async () => {
      assertHas(await onlyRecord('events', { kind: 'page' }), {
        customer_id: '1',
        type: 'page',
        name: 'https://example.com/pricing?plan=pro#top',
      });
    },
  },
  {
    method: 'trackAnonymous',
    title: 'records an event of a visitor',
    args: () => ['visitor-1', { name: 'browsed', data: { page: '/home' } }],
    effect: async () => {
      assertHas(await onlyRecord('events', { anonymous_id: 'visitor-1' }), {
        kind: 'anonymous',
        customer_id: null,
        name: 'browsed',
        data: { page: '/home' },
      });
      assert.deepEqual(await records('customers'), []);
    },
  },
  {
    method: 'trackAnonymous',
    title: 'records an invitation that has no anonymous id',
    args: () => ['', { name: 'invite', data: { recipient: 'alex@example.com' } }],
    effect: async () => {
      const invite = await onlyRecord('events', { kind: 'anonymous' });
      assertHas(invite, { name: 'invite', data: { recipient: 'alex@example.com' } });
      assert.ok(!invite.anonymous_id);
    },
  },
  {
    method: 'trackPush',
    title: 'records what a device reports',
    args: () => [{ delivery_id: 'delivery-1', device_id: 'phone-token', event: 'opened', timestamp: 1700000000 }],
    effect: async () => {
      assertHas(await onlyRecord('events', { kind: 'push' }), {
        name: 'opened',
        data: { delivery_id: 'delivery-1', device_id: 'phone-token' },
        timestamp: 1700000000,
      });
    },
  },
  {
    method: 'addDevice',
    title: 'registers a device with its attributes',
    given: identifyBob,
    args: () => ['1', 'phone-token', 'ios', { last_used: 1700000000, app_version: '1.2.3' }],
    effect: async ({ app }) => {
      const device = { id: 'phone-token', platform: 'ios', last_used: 1700000000 };
      assertHas(await onlyRecord('devices'), { ...device, customer_id: '1', attributes: { app_version: '1.2.3' } });
      const { customer } = await app.getAttributes('1');
      assertHas(customer.devices[0], device);
    },
  },
  {
    method: 'addDevice',
    title: 'updates a device that is known',
    given: addPhone,
    args: () => ['1', 'phone-token', 'ios', { app_version: '2.0.0' }],
    effect: async () => assertHas(await onlyRecord('devices'), { attributes: { app_version: '2.0.0' } }),
  },
  {
    method: 'deleteDevice',
    title: 'removes the device and leaves the person',
    given: addPhone,
    args: () => ['1', 'phone-token'],
    effect: async () => {
      assert.deepEqual(await records('devices'), []);
      assertHas(await onlyRecord('customers'), { id: '1' });
    },
  },
  {
    method: 'mergeCustomers',
    title: 'folds the secondary person into the primary one',
    given: async ({ track }) => {
      await track.identify('1', { first_name: 'Bob' });
      await track.identify('2', { email: 'second@example.com', first_name: 'Robert', city: 'Lisbon' });
      await track.track('2', { name: 'signup' });
    },
    args: ({ sdk }) => [sdk.IdentifierType.Id, '1', sdk.IdentifierType.Email, 'second@example.com'],
    effect: async () => {
      const merge = await onlyRecord('merges');
      assertHas(merge, { primary: { id: '1' }, secondary: { email: 'second@example.com' } });
      assertHas(await onlyRecord('customers'), { id: '1', attributes: { first_name: 'Bob', city: 'Lisbon' } });
      assertHas(await onlyRecord('events', { name: 'signup' }), { customer_id: '1' });
    },
  },
  {
    method: 'batch',
    title: 'applies the operations in their order',
    args: () => [BATCH],
    effect: async () => {
      assertHas(await record('customers', '1'), { attributes: { plan: 'pro' } });
      assertHas(await onlyRecord('events'), {
        kind: 'event',
        customer_id: '1',
        name: 'signup',
        data: { source: 'web' },
      });
      assertHas(await onlyRecord('devices'), { id: 'phone-token', customer_id: '1' });
      assert.deepEqual((await onlyRecord('batches')).operations, asJson(BATCH));
    },
  },
  {
    method: 'batch',
    title: 'names the operations it refuses and applies the others',
    args: () => [[{ type: 'person', action: 'event', identifiers: { id: '1' } }, BATCH[0]]],
    answer: (answer) => assertHas(answer.errors[0], { batch_index: 0, reason: 'required', field: 'name' }),
    effect: async () => assertHas(await onlyRecord('customers'), { id: '1' }),
  },
];

const nothing = (answer) => assert.deepEqual(answer, {});

export const TRACK_ROWS = ROWS.map((row) => ({ client: 'track', answer: nothing, ...row }));
