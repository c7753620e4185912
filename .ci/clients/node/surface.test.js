// The rows must reach every public method that stands for an operation of the fake.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { Analytics } from '@customerio/cdp-analytics-node';

import { ROWS } from './rows/index.js';
import { PIPELINE_CALLS } from './rows/pipelines.js';
import { SDKS } from './sdks.js';

const OPERATIONS = {
  track: [
    'identify',
    'destroy',
    'suppress',
    'unsuppress',
    'track',
    'trackPageView',
    'trackAnonymous',
    'trackPush',
    'addDevice',
    'deleteDevice',
    'mergeCustomers',
    'batch',
  ],
  app: [
    'sendEmail',
    'sendPush',
    'sendSMS',
    'sendInboxMessage',
    'sendInApp',
    'getCustomersByEmail',
    'getAttributes',
    'triggerBroadcast',
    'listExports',
    'getExport',
    'downloadExport',
    'createCustomersExport',
    'createDeliveriesExport',
  ],
  pipelines: ['identify', 'track', 'page', 'screen', 'group', 'alias', 'batch'],
};

const CLASSES = { track: 'TrackClient', app: 'APIClient', pipelines: 'PipelinesClient' };

const HELPERS = ['constructor', 'envelope'];

// Until 5.0.1 the classes hold nothing but these operations; 5.2.0 adds methods
// for the rest of the APIs, which need no row here.
const WHOLE_SURFACE = ['4.1.1', '4.5.1', '5.0.1'];

const publicMethods = (type) =>
  type ? Object.getOwnPropertyNames(type.prototype).filter((name) => !HELPERS.includes(name)) : [];

const rowMethods = (client) => new Set(ROWS.filter((row) => row.client === client).map((row) => row.method));

for (const { version, sdk } of SDKS) {
  describe(`customerio-node ${version}`, () => {
    for (const [client, className] of Object.entries(CLASSES)) {
      const methods = publicMethods(sdk[className]);

      test(`every operation of ${className} has a row`, () => {
        const driven = rowMethods(client);
        const expected = WHOLE_SURFACE.includes(version)
          ? methods
          : methods.filter((name) => OPERATIONS[client].includes(name));
        assert.deepEqual(
          expected.filter((name) => !driven.has(name)),
          [],
        );
      });
    }
  });
}

test('the newest version has every operation', () => {
  const { sdk } = SDKS.at(-1);
  for (const [client, className] of Object.entries(CLASSES)) {
    const methods = publicMethods(sdk[className]);
    assert.deepEqual(
      OPERATIONS[client].filter((name) => !methods.includes(name)),
      [],
    );
  }
});

test('every row calls a method of some version', () => {
  const known = (client, method) => SDKS.some(({ sdk }) => publicMethods(sdk[CLASSES[client]]).includes(method));
  assert.deepEqual(
    ROWS.filter(({ client, method }) => !known(client, method)),
    [],
  );
});

test('every call of cdp-analytics-node has a payload', () => {
  const plumbing = ['constructor', 'VERSION', 'closeAndFlush', '_dispatch', 'register', 'deregister'];
  const calls = Object.getOwnPropertyNames(Analytics.prototype).filter((name) => !plumbing.includes(name));
  assert.deepEqual(calls.sort(), Object.keys(PIPELINE_CALLS).sort());
});
