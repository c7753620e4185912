// The server under test, seen through its control endpoints.

const { CUSTOMERIO_FAKE_URL } = process.env;

if (!CUSTOMERIO_FAKE_URL) {
  throw new Error('set CUSTOMERIO_FAKE_URL to the address of the server under test (the tests reset it)');
}

export const FAKE_URL = new URL(CUSTOMERIO_FAKE_URL);

const LIST_KEYS = { 'pipeline-events': 'events' };

async function control(path, init) {
  const response = await fetch(new URL(`/__parlel/${path}`, FAKE_URL), init);
  const body = await response.text();
  if (!response.ok) {
    throw new Error(`/__parlel/${path} answered ${response.status}: ${body}`);
  }
  return body ? JSON.parse(body) : {};
}

export const reset = () => control('reset', { method: 'POST' });

/** Makes the workspace hold what a document says, and every reset return to that. */
export const seed = (document) => control('seed', { method: 'POST', body: JSON.stringify(document) });

/** The records of one list, oldest first, narrowed by field filters. */
export async function records(list, filters = {}) {
  const answer = await control(`${list}?${new URLSearchParams(filters)}`);
  return answer[LIST_KEYS[list] ?? list];
}

/** Lets the requests go wrong that a rule matches; gives the rule with its id. */
export const addFault = (rule) => control('faults', { method: 'POST', body: JSON.stringify(rule) });

export const record = (list, id) => control(`${list}/${encodeURIComponent(id)}`);

/** The one record a list is expected to hold. */
export async function onlyRecord(list, filters) {
  const found = await records(list, filters);
  if (found.length !== 1) {
    throw new Error(`expected one record in ${list}, found ${JSON.stringify(found)}`);
  }
  return found[0];
}
