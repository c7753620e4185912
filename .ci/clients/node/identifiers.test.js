// Identifiers that need escaping survive the way to the server and back.

import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';

import { assertHas } from './expect.js';
import { onlyRecord, record, records, reset } from './fake.js';
import { SDKS, connect } from './sdks.js';

// `reserved` ids mean something else when they stand unescaped in a URL.
const IDS = [
  { id: 'two words' },
  { id: 'a+b' },
  { id: 'shop:158491' },
  { id: 'user@home' },
  { id: 'Zoë-日本-🦊' },
  { id: "it's_(me)*!~" },
  { id: 'folder/file', reserved: true },
  { id: '/edge/', reserved: true },
  { id: '100%', reserved: true },
  { id: 'a%2Fb', reserved: true },
  { id: 'q?x=1&y=2#z', reserved: true },
];

const EMAILS = ['ann@example.com', 'ann+news@example.com', "o'neil/sales@example.com"];

async function roundTrip({ track }, id) {
  await track.identify(id, { plan: 'pro' });
  assertHas(await onlyRecord('customers'), { id, attributes: { plan: 'pro' } });
  assertHas(await record('customers', id), { id });

  await track.track(id, { name: id });
  assertHas(await onlyRecord('events', { name: id }), { customer_id: id });

  await track.addDevice(id, id, 'ios');
  assertHas(await onlyRecord('devices'), { id, customer_id: id });
  await track.deleteDevice(id, id);
  assert.deepEqual(await records('devices'), []);
}

async function disappears({ track }, id) {
  await track.suppress(id);
  assert.deepEqual(await records('suppressed'), [id]);
  await track.unsuppress(id);
  assert.deepEqual(await records('suppressed'), []);
  await track.identify(id);
  await track.destroy(id);
  assert.deepEqual(await records('customers'), []);
}

for (const entry of SDKS) {
  describe(`customerio-node ${entry.version}`, () => {
    const clients = connect(entry);

    beforeEach(reset);

    for (const { id } of IDS) {
      test(`writes ${id}`, async () => {
        await roundTrip(clients, id);
        await disappears(clients, id);
      });
    }

    const readable = IDS.filter(({ reserved = false }) => entry.escapesReads || !reserved);

    for (const { id } of readable) {
      test(`reads ${id}`, async () => {
        await clients.track.identify(id);
        const { customer } = await clients.app.getAttributes(id);
        assert.equal(customer.id, id);
      });
    }

    for (const email of EMAILS) {
      test(`takes ${email} for an email`, async () => {
        await clients.track.identify(email, { plan: 'pro' });
        assertHas(await onlyRecord('customers'), { identifiers: { email }, attributes: { plan: 'pro' } });
        const { results } = await clients.app.getCustomersByEmail(email);
        assert.deepEqual(
          results.map((person) => person.email),
          [email],
        );
      });
    }
  });
}
