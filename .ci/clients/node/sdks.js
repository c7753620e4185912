// The versions of customerio-node under test and how each is pointed at a server.

import http from 'node:http';
import https from 'node:https';

import v411 from 'node-4.1.1';
import v451 from 'node-4.5.1';
import v501 from 'node-5.0.1';
import v520 from 'node-5.2.0';

import { FAKE_URL } from './fake.js';

const AGENTS = {
  'http:': new http.Agent({ keepAlive: true }),
  'https:': new https.Agent({ keepAlive: true }),
};

// 4.x calls https.request() with the host of `url` only: the scheme, the port
// and an agent for the scheme have to come as request options.
const nodeRequest = ({ protocol, port }) => ({ protocol, port: port || undefined, agent: AGENTS[protocol] });

// 5.x uses fetch. A retried failure would only hide what the server answered.
const fetchRequest = () => ({ retry: { maxRetries: 0 } });

export const SDKS = [
  { version: '4.1.1', sdk: v411, transport: nodeRequest, escapesReads: false },
  { version: '4.5.1', sdk: v451, transport: nodeRequest, escapesReads: true },
  { version: '5.0.1', sdk: v501, transport: fetchRequest, escapesReads: true },
  { version: '5.2.0', sdk: v520, transport: fetchRequest, escapesReads: true },
];

export const sdkOfVersion = (version) => SDKS.find((entry) => entry.version === version);

export const KEYS = {
  siteId: 'parlel-site-id',
  apiKey: 'parlel-api-key',
  appKey: 'parlel-app-key',
  writeKey: 'parlel-write-key',
};

/** The clients of one version; `pipelines` is missing where the version has none. */
export function connect({ sdk, transport }, { origin = FAKE_URL, keys = KEYS, slash = '', pipelines = {} } = {}) {
  const options = (path) => ({ ...transport(origin), url: new URL(path, origin).href + slash });
  return {
    sdk,
    track: new sdk.TrackClient(keys.siteId, keys.apiKey, options('/api/v1')),
    app: new sdk.APIClient(keys.appKey, options('/v1')),
    pipelines: sdk.PipelinesClient && new sdk.PipelinesClient(keys.writeKey, { ...options('/v1'), ...pipelines }),
  };
}
