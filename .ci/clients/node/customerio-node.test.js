// Every row with every version of customerio-node that has the method.

import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';

import { assertHas } from './expect.js';
import { onlyRecord, records, reset } from './fake.js';
import { ROWS } from './rows/index.js';
import { SDKS, connect } from './sdks.js';

const unchecked = () => {};

const appliesTo =
  ({ version }, clients) =>
  ({ client, method, versions = [version] }) =>
    versions.includes(version) && clients[client]?.[method];

async function drive(row, clients) {
  const { client, method, given = unchecked, args, answer = unchecked, effect = unchecked } = row;
  const prepared = await given(clients);
  const values = await args(clients, prepared);
  const result = await clients[client][method](...values);
  answer(result);
  await effect(clients, result, values);
}

async function identifyAtOnce({ track }, count) {
  const ids = Array.from({ length: count }, (_, index) => String(index));
  await Promise.all(ids.map((id) => track.identify(id, { seat: id })));
  const people = await records('customers');
  assert.deepEqual(people.map(({ id }) => id).sort(), ids.sort());
}

async function useTrailingSlash(entry) {
  const { track, app } = connect(entry, { slash: '/' });
  await track.identify('1');
  assertHas(await onlyRecord('customers'), { id: '1' });
  assert.equal((await app.getAttributes('1')).customer.id, '1');
}

for (const entry of SDKS) {
  describe(`customerio-node ${entry.version}`, () => {
    const clients = connect(entry);
    const rows = ROWS.filter(appliesTo(entry, clients));

    beforeEach(reset);

    for (const row of rows) {
      test(`${row.client}.${row.method} ${row.title}`, () => drive(row, clients));
    }

    test('many calls can be under way at the same time', () => identifyAtOnce(clients, 50));

    test('a base URL may end in a slash', () => useTrailingSlash(entry));
  });
}
