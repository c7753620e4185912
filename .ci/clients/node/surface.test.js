// The rows must reach every public method of every version.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { Analytics } from '@customerio/cdp-analytics-node';

import { ROWS } from './rows/index.js';
import { PIPELINE_CALLS } from './rows/pipelines.js';
import { SEEDED_ROWS } from './rows/seeded/index.js';
import { SDKS } from './sdks.js';

const CLASSES = { track: 'TrackClient', app: 'APIClient', pipelines: 'PipelinesClient' };

// Not offered to callers: private in the type declarations of the clients.
const HELPERS = ['constructor', 'envelope', 'resourceBase'];

const ALL_ROWS = [...ROWS, ...SEEDED_ROWS];

// The rows of a seeded workspace are driven with the newest version only.
const rowsOf = (entry) => (entry === SDKS.at(-1) ? ALL_ROWS : ROWS);

const publicMethods = (type) =>
  type ? Object.getOwnPropertyNames(type.prototype).filter((name) => !HELPERS.includes(name)) : [];

const rowMethods = (rows, client) => new Set(rows.filter((row) => row.client === client).map((row) => row.method));

for (const entry of SDKS) {
  const { version, sdk } = entry;

  describe(`customerio-node ${version}`, () => {
    for (const [client, className] of Object.entries(CLASSES)) {
      const methods = publicMethods(sdk[className]);

      test(`every method of ${className} has a row`, () => {
        const driven = rowMethods(rowsOf(entry), client);
        assert.deepEqual(
          methods.filter((name) => !driven.has(name)),
          [],
        );
      });
    }
  });
}

test('every row calls a method of some version', () => {
  const known = (client, method) => SDKS.some(({ sdk }) => publicMethods(sdk[CLASSES[client]]).includes(method));
  assert.deepEqual(
    ALL_ROWS.filter(({ client, method }) => !known(client, method)),
    [],
  );
});

test('every call of cdp-analytics-node has a payload', () => {
  const plumbing = ['constructor', 'VERSION', 'closeAndFlush', '_dispatch', 'register', 'deregister'];
  const calls = Object.getOwnPropertyNames(Analytics.prototype).filter((name) => !plumbing.includes(name));
  assert.deepEqual(calls.sort(), Object.keys(PIPELINE_CALLS).sort());
});
