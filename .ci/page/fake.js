// The server under test and the browser that looks at it.

import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

export const FAKE = process.env.CUSTOMERIO_FAKE_URL;

if (!FAKE) {
  throw new Error('set CUSTOMERIO_FAKE_URL to the address of the server under test (the tests reset it)');
}

/** Calls the server as a program does; gives the JSON answer. */
export async function call(method, path, body) {
  const headers = { authorization: /^(\/@[^/]+)?\/v1\//.test(path) ? 'Bearer k' : 'Basic czprOg==' };
  const init = { method, headers, body: body === undefined ? body : JSON.stringify(body) };
  const response = await fetch(FAKE + path, init);
  const text = await response.text();
  if (!response.ok) {
    throw new Error(`${method} ${path} answered ${response.status}: ${text}`);
  }
  return text ? JSON.parse(text) : {};
}

/** Sends an email to one person; gives its delivery id. */
export async function send(body, more = {}, place = '') {
  const message = { to: 'ada@example.com', identifiers: { id: '1' }, from: 'shop@example.com' };
  const answer = await call('POST', `${place}/v1/send/email`, { ...message, subject: 'Hello', body, ...more });
  return answer.delivery_id;
}

/** Starts Debian's chromium with a profile of its own, in the folder that TMPDIR names. */
export async function browse({ args = [], ...options } = {}) {
  const profile = await mkdtemp(join(tmpdir(), 'customerio-fake-page-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    timeout: 20000,
    args: [
      '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync', ...args,
    ],
    ...options,
  });
  context.setDefaultTimeout(5000);
  return context;
}
