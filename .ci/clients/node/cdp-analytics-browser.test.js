// @customerio/cdp-analytics-browser as a page on another origin runs it: in jsdom, whose requests
// obey CORS, and in a real browser.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import { after, before, beforeEach, describe, test } from 'node:test';

import { JSDOM, VirtualConsole } from 'jsdom';
import { chromium } from 'playwright-core';

import { assertHas, eventually } from './expect.js';
import { FAKE_URL, onlyRecord, records, reset } from './fake.js';
import { KEYS } from './sdks.js';

const BUNDLE = new URL('node_modules/@customerio/cdp-analytics-browser/dist/umd/index.js', import.meta.url);
const SCRIPT = readFileSync(BUNDLE, 'utf8');

/** What the page does. It is written out into the page, so it sees nothing of this file. */
async function visit({ fake, writeKey, strategy }) {
  // Only where the settings come from: they say where the calls go.
  const config = { size: 9, timeout: 20 };
  const delivery = { deliveryStrategy: { strategy, config } };
  const integrations = { 'Customer.io Data Pipelines': delivery };
  const analytics = globalThis.AnalyticsNext.AnalyticsBrowser.load({ writeKey, cdnURL: fake }, { integrations });
  await analytics.track('Looked Around');
  await analytics.identify('1', { email: 'bob@example.com', plan: 'pro' });
  await analytics.track('Order Completed', { revenue: 39.95 });
  await analytics.page('Docs', 'Pricing');
  await analytics.screen('Home', { tab: 'news' });
  await analytics.group('acme', { name: 'Acme', seats: 5 });
  await analytics.alias('1', 'old-1');
  const anonymousId = (await analytics.user()).anonymousId();
  await analytics.reset();
  await analytics.track('Came Back');
  return anonymousId;
}

const inPage = (strategy) => `(${visit})(${JSON.stringify({ fake: FAKE_URL.origin, writeKey: KEYS.writeKey, strategy })})`;

async function inJsdom(origin, script) {
  const complaints = [];
  const virtualConsole = new VirtualConsole().on('jsdomError', (error) => complaints.push(error.message));
  const { window } = new JSDOM('<title>Docs</title>', { url: origin, runScripts: 'outside-only', virtualConsole });
  try {
    window.eval(SCRIPT);
    const answer = await window.eval(script);
    await eventually(() => records('events'), (events) => events.length === 5);
    return { answer, complaints };
  } finally {
    window.close();
  }
}

function withChromium() {
  let browser;
  before(async () => {
    browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox'] });
  });
  after(() => browser?.close());
  return async (origin, script) => {
    const complaints = [];
    const page = await browser.newPage();
    page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(error.message));
    await page.goto(origin);
    await page.addScriptTag({ path: BUNDLE.pathname });
    const answer = await page.evaluate(script);
    await eventually(() => records('events'), (events) => events.length === 5);
    await page.close();
    return { answer, complaints };
  };
}

/** A site that has nothing to do with the fake; gives its origin. */
async function startSite() {
  const site = http.createServer((request, response) => {
    response.setHeader('Content-Type', 'text/html').end('<title>Docs</title>');
  });
  await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
  return { origin: `http://localhost:${site.address().port}`, close: () => site.close() };
}

for (const [place, browserOf] of Object.entries({ jsdom: () => inJsdom, chromium: withChromium })) {
  describe(`cdp-analytics-browser in ${place}`, () => {
    const run = browserOf();
    let site;
    before(async () => {
      site = await startSite();
    });
    after(() => site.close());
    beforeEach(reset);

    for (const strategy of ['standard', 'batching']) {
      test(`a visit arrives with all its effects, ${strategy}`, async () => {
        const { answer: anonymousId, complaints } = await run(site.origin, inPage(strategy));
        assert.deepEqual(complaints, []);
        const person = await onlyRecord('customers');
        assertHas(person, { identifiers: { id: '1', email: 'bob@example.com' }, attributes: { plan: 'pro' } });
        const events = await records('events');
        const rows = events.map(({ name, type, customer_id: who }) => [name, type, who]);
        assert.deepEqual(rows.sort(), [
          ['Came Back', 'event', null],
          ['Home', 'screen', '1'],
          ['Looked Around', 'event', '1'],
          ['Order Completed', 'event', '1'],
          ['Pricing', 'page', '1'],
        ]);
        const named = (name) => events.find((event) => event.name === name);
        assert.equal(named('Looked Around').anonymous_id, anonymousId);
        assert.notEqual(named('Came Back').anonymous_id, anonymousId);
        assertHas(named('Pricing').data, { category: 'Docs', url: `${site.origin}/`, title: 'Docs' });
        assertHas(await onlyRecord('objects'), { attributes: { name: 'Acme', seats: 5 } });
        assertHas(await onlyRecord('merges'), { primary: { id: '1' }, secondary: { id: 'old-1' } });
        assert.equal((await records('batches')).length > 0, strategy === 'batching');
      });
    }
  });
}
