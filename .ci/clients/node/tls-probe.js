// One write and one read over https, in a process that trusts the test CA
// through NODE_EXTRA_CA_CERTS: fetch has no other switch for it.

import { FAKE_URL } from './fake.js';
import { connect, sdkOfVersion } from './sdks.js';

const [version] = process.argv.slice(2);
const origin = new URL(FAKE_URL);
origin.protocol = 'https:';

const { track, app } = connect(sdkOfVersion(version), { origin });
await track.identify('over-tls', { version });
const { customer } = await app.getAttributes('over-tls');
process.stdout.write(customer.attributes.version);
