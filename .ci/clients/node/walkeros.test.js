// A walk through the mapping of the walkerOS destination.

import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';

import { assertHas } from './expect.js';
import { onlyRecord, record, records, reset } from './fake.js';
import { connect, sdkOfVersion } from './sdks.js';
import { MAPPING_SETTINGS, WalkerDestination } from './walkeros-destination.js';

const USER = { id: 'us3r', session: 's3ss10n' };

const event = (name, user = USER) => ({ name, user, timestamp: 1700000100000 });

const rule = (settings) => ({ skip: true, settings });

const identifyUser = ({ track }) => track.identify('us3r', { email: 'user@example.com' });

const addPhone = ({ track }) => track.addDevice('us3r', 'phone-token', 'ios');

const WALK = [
  {
    title: 'default track',
    event: event('product view'),
    effect: async () => {
      assertHas(await onlyRecord('events'), {
        kind: 'event',
        customer_id: 'us3r',
        name: 'product view',
        data: {},
        timestamp: 1700000100,
      });
    },
  },
  {
    title: 'mapped event name',
    event: event('order complete'),
    rule: { name: 'purchase' },
    effect: async () => assertHas(await onlyRecord('events'), { customer_id: 'us3r', name: 'purchase' }),
  },
  {
    title: 'mapped data',
    event: event('order complete'),
    rule: { name: 'purchase', data: { order_id: '0rd3r1d', value: 555, currency: 'EUR' } },
    effect: async () => {
      assertHas(await onlyRecord('events'), {
        name: 'purchase',
        data: { order_id: '0rd3r1d', value: 555, currency: 'EUR' },
      });
    },
  },
  {
    title: 'anonymous track',
    event: event('product view', { session: 's3ss10n' }),
    effect: async () => {
      assertHas(await onlyRecord('events'), {
        kind: 'anonymous',
        anonymous_id: 's3ss10n',
        customer_id: null,
        name: 'product view',
      });
      assert.deepEqual(await records('customers'), []);
    },
  },
  {
    title: 'user login identify',
    setting: 'identify',
    event: event('user login'),
    rule: rule({ identify: { email: 'user@acme.com', first_name: 'Jane', plan: 'premium' } }),
    effect: async () => {
      assertHas(await record('customers', 'us3r'), {
        identifiers: { email: 'user@acme.com' },
        attributes: { first_name: 'Jane', plan: 'premium' },
      });
      assert.deepEqual(await records('events'), []);
    },
  },
  {
    title: 'page view',
    setting: 'page',
    event: event('page view'),
    rule: rule({ page: { url: 'https://example.com/pricing', referrer: 'https://search.example' } }),
    effect: async () => {
      assertHas(await onlyRecord('events'), { kind: 'page', customer_id: 'us3r', name: 'https://example.com/pricing' });
    },
  },
  {
    title: 'destroy person',
    setting: 'destroy',
    given: identifyUser,
    event: event('user delete'),
    rule: rule({ destroy: true }),
    effect: async () => assert.deepEqual(await records('customers'), []),
  },
  {
    title: 'suppress person',
    setting: 'suppress',
    given: identifyUser,
    event: event('user suppress'),
    rule: rule({ suppress: true }),
    effect: async () => {
      assert.ok((await records('suppressed')).includes('us3r'));
      assert.deepEqual(await records('customers'), []);
    },
  },
  {
    title: 'unsuppress person',
    setting: 'unsuppress',
    given: ({ track }) => track.suppress('us3r'),
    event: event('user unsuppress'),
    rule: rule({ unsuppress: true }),
    effect: async ({ track }) => {
      assert.deepEqual(await records('suppressed'), []);
      await identifyUser({ track });
      assertHas(await onlyRecord('customers'), { id: 'us3r' });
    },
  },
  {
    title: 'register a device',
    setting: 'addDevice',
    event: event('app install'),
    rule: rule({ addDevice: { deviceId: 'phone-token', platform: 'ios', data: { app_version: '1.2.3' } } }),
    effect: async () => {
      assertHas(await onlyRecord('devices'), {
        id: 'phone-token',
        platform: 'ios',
        customer_id: 'us3r',
        attributes: { app_version: '1.2.3' },
      });
    },
  },
  {
    title: 'remove a device',
    setting: 'deleteDevice',
    given: addPhone,
    event: event('app remove'),
    rule: rule({ deleteDevice: { deviceId: 'phone-token', platform: 'ios' } }),
    effect: async () => assert.deepEqual(await records('devices'), []),
  },
  {
    title: 'merge profiles',
    setting: 'merge',
    given: async ({ track }) => {
      await identifyUser({ track });
      await track.identify('duplicate', { city: 'Lisbon' });
    },
    event: event('user merge'),
    rule: rule({ merge: { primaryType: 'id', primaryId: 'us3r', secondaryType: 'id', secondaryId: 'duplicate' } }),
    effect: async () => {
      assertHas(await onlyRecord('merges'), { primary: { id: 'us3r' }, secondary: { id: 'duplicate' } });
      assertHas(await onlyRecord('customers'), { id: 'us3r', attributes: { city: 'Lisbon' } });
    },
  },
  {
    title: 'transactional email',
    setting: 'sendEmail',
    event: event('order complete'),
    rule: rule({
      sendEmail: {
        to: 'user@example.com',
        transactional_message_id: 'receipt',
        message_data: { total: 555 },
        identifiers: { id: 'us3r' },
      },
    }),
    effect: async () => {
      assertHas(await onlyRecord('deliveries'), {
        channel: 'email',
        message: { to: 'user@example.com', transactional_message_id: 'receipt', message_data: { total: 555 } },
      });
    },
  },
  {
    title: 'transactional push',
    setting: 'sendPush',
    event: event('order shipped'),
    rule: rule({
      sendPush: { transactional_message_id: 'shipped', message_data: { parcel: 'P1' }, identifiers: { id: 'us3r' } },
    }),
    effect: async () => {
      assertHas(await onlyRecord('deliveries'), {
        channel: 'push',
        message: { transactional_message_id: 'shipped', message_data: { parcel: 'P1' } },
      });
    },
  },
];

const emailOfUser = ({ user: { email } }) => ({ email });

async function identifyFiresAgain(clients) {
  const destination = new WalkerDestination(clients, { identify: emailOfUser });
  const view = (email) => destination.push(event('page view', { ...USER, email }));

  await view('user@example.com');
  assertHas(await record('customers', 'us3r'), { identifiers: { email: 'user@example.com' } });

  // Unchanged values are not sent again, so the deleted person comes back
  // through the event alone, without an email.
  await clients.track.destroy('us3r');
  await view('user@example.com');
  assert.equal((await record('customers', 'us3r')).identifiers.email, null);

  await view('moved@example.com');
  assertHas(await record('customers', 'us3r'), { identifiers: { email: 'moved@example.com' } });
  assert.equal((await records('events', { name: 'page view' })).length, 3);
}

for (const version of ['4.5.1', '5.2.0']) {
  describe(`walkerOS with customerio-node ${version}`, () => {
    const clients = connect(sdkOfVersion(version));

    beforeEach(reset);

    for (const { title, given, event: pushed, rule: mapped, effect } of WALK) {
      test(title, async () => {
        await given?.(clients);
        await new WalkerDestination(clients).push(pushed, mapped);
        await effect(clients);
      });
    }

    test('destination identify fires on the first push and when values change', () => identifyFiresAgain(clients));
  });
}

test('every mapping setting is walked', () => {
  const walked = WALK.map(({ setting }) => setting).filter(Boolean);
  assert.deepEqual(walked.sort(), [...MAPPING_SETTINGS].sort());
});
