// The whole loop of in-app and inbox messages with the official browser SDK: a message is sent, the
// SDK shows it in a page, somebody taps, and the metric arrives. The fake listens with --in-app.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { browse, call, FAKE } from './fake.js';

const SDK = new URL('node_modules/@customerio/cdp-analytics-browser/dist/umd/', import.meta.url);
const PLUGIN = 'Customer.io In-App Plugin';
const content = (id, body, look) => ({ id, name: `m${id}`, contents: [{ id, type: 'in_app', body, in_app: look }] });
const TEA = '<div style="padding:24px;text-align:center"><h2>Hello {{customer.name}}</h2>'
  + '<a href="https://shop.example/tea">See it</a> <button data-action="gist://close">Later</button></div>';
const HOSTILE = '<h2>Prize</h2><script>top.hacked = 1</script><img src=x onerror="top.hacked = 2">'
  + '<form action="/__parlel/reset" method="post"><button>Win</button></form><base href="https://evil.example/">';
const SEED = {
  customers: [{ id: 'ada', attributes: { name: 'Ada' } }, { id: 'bob', attributes: { name: 'Bob' } }],
  transactional: [
    content(1, TEA, { position: 'center' }),
    content(2, '<p>In its slot</p>', { element_id: 'slot' }),
    content(3, '<p>For the checkout</p>', { route_rule_web: '.*/checkout.*' }),
    content(4, HOSTILE, {}),
    content(5, '<p>text</p>', { topics: ['orders'], type: 'cta', properties: { title: 'Paid', body: '{{customer.name}}' } }),
  ],
};

let context, site, page;

async function eventually(look, fits = Boolean) {
  for (let left = 100; ; left -= 1) {
    const seen = await look();
    if (fits(seen)) return seen;
    assert.ok(left, `in vain: ${JSON.stringify(seen)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const sendTo = async (person, message, channel = 'in_app') => (await call('POST', `/v1/send/${channel}`, {
  transactional_message_id: message, identifiers: { id: person } })).delivery_id;
const metricsOf = async (id) => (await call('GET', `/v1/messages/${id}`)).message.metrics;
const shown = (text) => page.frameLocator('iframe').frameLocator('iframe').getByText(text);

/** Opens the shop with the SDK in it; somebody is logged in unless there is no id. */
async function visit(person, path = '/') {
  page = await context.newPage();
  page.complaints = [];
  page.on('pageerror', (error) => page.complaints.push(error.message));
  await page.goto(site.origin + path);
  await page.evaluate(() => localStorage.clear()); // when it asked last, and what it has shown
  await page.addScriptTag({ url: '/sdk/index.js' });
  await page.evaluate(async ({ fake, plugin, person: id }) => {
    const integrations = { [plugin]: { siteId: 'site', _env: 'local', events: null, anonymousInApp: true } };
    const [analytics] = await globalThis.AnalyticsNext.AnalyticsBrowser.load(
      { writeKey: 'key', cdnURL: fake }, { integrations });
    globalThis.analytics = analytics;
    if (id) await analytics.identify(id);
  }, { fake: FAKE, plugin: PLUGIN, person });
}

async function picture(name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `in-app-${name}.png`) });
}

before(async () => {
  const shop = createServer((request, response) => {
    const file = /^\/sdk\/([\w.-]+)$/.exec(request.url);
    if (file) response.setHeader('Content-Type', 'text/javascript').end(readFileSync(new URL(file[1], SDK)));
    else response.setHeader('Content-Type', 'text/html').end('<title>Shop</title><h1>Shop</h1><div id="slot"></div>');
  });
  await new Promise((resolve) => shop.listen(0, '127.0.0.1', resolve));
  site = { origin: `http://localhost:${shop.address().port}`, close: () => shop.close() };
  context = await browse();
  // The SDK's parts, which it would fetch from the vendor.
  await context.route('https://cdp.customer.io/analytics-next/bundles/*', (route) => route.fulfill({
    contentType: 'text/javascript', body: readFileSync(new URL(route.request().url().split('/').at(-1), SDK)) }));
});
after(async () => { await context.close(); site.close(); });
beforeEach(async () => {
  await page?.close();
  await context.clearCookies();
  await call('POST', '/__parlel/seed', SEED);
});

describe('in-app messages in the official browser SDK', () => {
  test('a modal is seen, tapped and closed, and each time the metric arrives', async () => {
    const id = await sendTo('ada', 1);
    await visit('ada');
    await shown('Hello Ada').waitFor();
    await picture('modal');
    await eventually(() => metricsOf(id), (metrics) => metrics.opened);
    await shown('Later').click();
    await page.locator('iframe').waitFor({ state: 'detached' });
    assert.deepEqual((await call('GET', '/__parlel/in-app?person=ada')).inAppMessages, []);
    assert.deepEqual(page.complaints, []);
  });

  test('a link that is tapped counts as a click', async () => {
    const id = await sendTo('ada', 1);
    await visit('ada');
    await shown('See it').click();
    const metrics = await eventually(() => metricsOf(id), (seen) => seen.clicked);
    assert.ok(metrics.human_clicked);
  });

  test('an inline message stands in its slot', async () => {
    await sendTo('ada', 2);
    await visit('ada');
    await page.locator('#slot iframe').waitFor();
    await shown('In its slot').waitFor();
    await picture('inline');
  });

  test('a page rule keeps a message for its page', async () => {
    await sendTo('ada', 3);
    await visit('ada');
    await eventually(() => call('GET', '/__parlel/events'), ({ events }) => events !== undefined);
    await page.waitForTimeout(1500);
    assert.equal(await page.locator('iframe').count(), 0);
    await page.close();
    await visit('ada', '/checkout');
    await shown('For the checkout').waitFor();
  });

  test('a new message is pushed to an open page', async () => {
    await visit('ada');
    await eventually(() => page.evaluate(() => Object.keys(localStorage).some((key) => /SSE|sse/.test(key))));
    await sendTo('ada', 1);
    await shown('Hello Ada').waitFor({ timeout: 15000 });
  });

  test('a message for everybody reaches an anonymous visitor', async () => {
    await call('POST', '/__parlel/seed', { ...SEED, in_app_messages: [{ id: 7, body: '<p>Sale!</p>' }] });
    await visit(null);
    await shown('Sale!').waitFor();
    await eventually(() => call('GET', '/__parlel/events'),
      ({ events }) => events.some((event) => event.name === 'viewed_content'));
  });

  test('two people get their own', async () => {
    await sendTo('bob', 1);
    await visit('ada');
    await page.waitForTimeout(1000);
    assert.equal(await page.locator('iframe').count(), 0);
    await page.close();
    await visit('bob');
    await shown('Hello Bob').waitFor();
  });

  test('a hostile message harms nobody', async () => {
    await call('PUT', '/api/v1/customers/eve', { name: 'Eve' });
    await sendTo('ada', 4);
    await visit('ada');
    await shown('Prize').waitFor();
    await shown('Win').click();
    await picture('hostile');
    assert.equal(await page.evaluate(() => globalThis.hacked), undefined);
    assert.equal((await call('GET', '/__parlel/customers/eve')).id, 'eve');
  });

  test('an inbox with topics: opened, unopened, clicked, deleted', async () => {
    const id = await sendTo('ada', 5, 'inbox_message');
    await visit('ada');
    const read = () => page.evaluate(async () => (await globalThis.analytics.inbox('orders').messages())
      .map(({ messageId, opened, properties }) => ({ messageId, opened, properties })));
    const [message] = await eventually(read, (messages) => messages.length === 1);
    assert.equal(message.properties.body, 'Ada');
    assert.deepEqual(await page.evaluate(async () => globalThis.analytics.inbox('other').messages()), []);
    const entry = () => call('GET', '/__parlel/in-app?person=ada').then((queue) => queue.inboxMessages[0]);
    const act = (verb, ...args) => page.evaluate(async ([name, more]) => {
      const [first] = await globalThis.analytics.inbox('orders').messages();
      await first[name](...more);
    }, [verb, args]);
    await act('markOpened');
    await eventually(entry, (seen) => seen.opened === true);
    await act('markUnopened');
    await eventually(entry, (seen) => seen.opened === false);
    await act('trackClick', 'pay');
    await eventually(() => metricsOf(id), (metrics) => metrics.clicked);
    await act('markDeleted');
    await eventually(entry, (seen) => seen === undefined);
  });
});
