// The port that answers http answers https, too.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import https from 'node:https';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeEach, describe, test } from 'node:test';

import { assertHas } from './expect.js';
import { FAKE_URL, onlyRecord, reset } from './fake.js';
import { SDKS, connect } from './sdks.js';

const { CUSTOMERIO_FAKE_CA: CA } = process.env;
const PROBE = fileURLToPath(new URL('tls-probe.js', import.meta.url));
const run = promisify(execFile);

function secureOrigin() {
  const origin = new URL(FAKE_URL);
  origin.protocol = 'https:';
  return origin;
}

describe('TLS', { skip: CA ? false : 'CUSTOMERIO_FAKE_CA is not set' }, () => {
  beforeEach(reset);

  for (const { version } of SDKS) {
    test(`customerio-node ${version} with the CA of the process`, async () => {
      const env = { ...process.env, NODE_EXTRA_CA_CERTS: CA };
      const { stdout } = await run(process.execPath, [PROBE, version], { env });
      assert.equal(stdout, version);
      assertHas(await onlyRecord('customers'), { id: 'over-tls' });
    });
  }

  for (const entry of SDKS.filter(({ version }) => version.startsWith('4.'))) {
    test(`customerio-node ${entry.version} with an agent that trusts the CA`, async () => {
      const agent = new https.Agent({ ca: readFileSync(CA) });
      const transport = (origin) => ({ ...entry.transport(origin), agent });
      const { track } = connect({ ...entry, transport }, { origin: secureOrigin() });
      await track.identify('over-tls');
      assertHas(await onlyRecord('customers'), { id: 'over-tls' });
    });
  }
});
