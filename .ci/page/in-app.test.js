// The whole loop of in-app and inbox messages with the official browser SDK: a message is sent, the
// SDK shows it in a page, somebody taps, and the metric arrives. The fake listens with --in-app.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { browse, call, FAKE } from './fake.js';

const SDK = new URL('node_modules/@customerio/cdp-analytics-browser/dist/umd/', import.meta.url);
const PLUGIN = 'Customer.io In-App Plugin';
const content = (id, body, look) => ({ id, name: `m${id}`, contents: [{ id, type: 'in_app', body, in_app: look }] });
const TEA = '<div style="padding:24px;text-align:center"><h2>Hello {{customer.name}}</h2>'
  + '<a href="https://shop.example/tea">See it</a> <button data-action="gist://close">Later</button></div>';
const HOSTILE = '<h2>Prize</h2><script>top.hacked = 1</script><img src="data:," onerror="top.hacked = 2">'
  + '<form action="/__parlel/reset" method="post"><button>Win</button></form><base href="https://evil.example/">';
const SEED = {
  customers: [{ id: 'ada', attributes: { name: 'Ada' } }, { id: 'bob', attributes: { name: 'Bob' } }],
  transactional: [
    content(1, TEA, { position: 'center' }),
    content(2, '<p>In its slot</p>', { element_id: 'slot' }),
    content(3, '<p>For the checkout</p>', { route_rule_web: '.*/checkout.*' }),
    content(4, HOSTILE, {}),
    content(5, '<p>text</p>', {
      topics: ['orders'], type: 'cta', expires_in: 3600, properties: { title: 'Paid', body: '{{customer.name}}' },
    }),
    content(6, TEA, {}),
  ],
};
const ASPECTS = { // how a message may appear, and where it is then seen: its box, in a window of that height
  'a modal at the top': [{ position: 'top' }, ({ y }) => y < 60],
  'a modal at the bottom': [{ position: 'bottom' }, ({ y, height }, bottom) => y + height > bottom - 60],
  'a banner at the top': [{ element_id: 'x-gist-floating-top' }, ({ x, y, width }) => x === 0 && y === 0 && width > 1000],
  'a banner at the bottom': [
    { element_id: 'x-gist-floating-bottom' }, ({ x, y, height }, bottom) => x === 0 && y + height === bottom],
  'a tooltip below what it is about': [
    { element_id: '#title', tooltip_position: 'bottom' }, ({ y }, bottom, title) => y > title.y + title.height],
};

const SHOP = '<title>Shop</title><h1><span id="title">Shop</span></h1><div id="slot"></div>';

let context, site, page;

async function eventually(look, fits = Boolean) {
  for (let left = 100; ; left -= 1) {
    const seen = await look();
    if (fits(seen)) return seen;
    assert.ok(left, `in vain: ${JSON.stringify(seen)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const sendTo = async (person, message, channel = 'in_app', { place = '', ...more } = {}) => (await call(
  'POST', `${place}/v1/send/${channel}`, { transactional_message_id: message, identifiers: { id: person }, ...more },
)).delivery_id;
const metricsOf = async (id, place = '') => (await call('GET', `${place}/v1/messages/${id}`)).message.metrics;
const queueOf = (person, place = '') => call('GET', `${place}/__parlel/in-app?person=${person}`);
const shown = (text) => page.frameLocator('iframe').frameLocator('iframe').getByText(text);

/** Opens the shop with the SDK in it; somebody is logged in unless there is no id. */
async function visit(person, path = '/', { origin = site.origin, env = 'local', siteId = 'site', writeKey = 'key' } = {}) {
  page = await context.newPage();
  page.complaints = [];
  page.on('pageerror', (error) => page.complaints.push(error.message));
  await page.goto(origin + path);
  await page.evaluate(() => localStorage.clear()); // when it asked last, and what it has shown
  await page.addScriptTag({ url: '/sdk/index.js' });
  await page.evaluate(async ({ fake, plugin, person: id, keys }) => {
    const integrations = { [plugin]: { siteId: keys.siteId, _env: keys.env, events: null, anonymousInApp: true } };
    const [analytics] = await globalThis.AnalyticsNext.AnalyticsBrowser.load(
      { writeKey: keys.writeKey, cdnURL: fake }, { integrations });
    globalThis.analytics = analytics;
    if (id) await analytics.identify(id);
  }, { fake: FAKE, plugin: PLUGIN, person, keys: { env, siteId, writeKey } });
  return page;
}

async function picture(name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `in-app-${name}.png`) });
}

async function openShop() {
  const shop = createServer((request, response) => {
    const file = /^\/sdk\/([\w.-]+)$/.exec(request.url);
    if (file) response.setHeader('Content-Type', 'text/javascript').end(readFileSync(new URL(file[1], SDK)));
    else response.setHeader('Content-Type', 'text/html').end(SHOP);
  });
  await new Promise((resolve) => shop.listen(0, '127.0.0.1', resolve));
  return { origin: `http://localhost:${shop.address().port}`, close: () => shop.close() };
}

before(async () => {
  site = await openShop();
  context = await browse();
  // The SDK's parts, which it would fetch from the vendor.
  await context.route('https://cdp.customer.io/analytics-next/bundles/*', (route) => route.fulfill({
    contentType: 'text/javascript', body: readFileSync(new URL(route.request().url().split('/').at(-1), SDK)) }));
});
after(async () => { await context.close(); site.close(); });
beforeEach(async () => {
  await page?.close();
  await context.clearCookies();
  await call('POST', '/__parlel/reset', {});
  await call('POST', '/__parlel/seed', SEED);
});
afterEach(async () => { // the SDK finds all that it asks for
  assert.deepEqual((await call('GET', '/__parlel/requests/unmatched')).requests, []);
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
    assert.deepEqual((await queueOf('ada')).inAppMessages, []);
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
    const id = await sendTo('ada', 2);
    await visit('ada');
    await page.locator('#slot iframe').waitFor();
    await shown('In its slot').waitFor();
    await eventually(() => metricsOf(id), (metrics) => metrics.opened);
    await picture('inline');
  });

  for (const [name, [look, fits]] of Object.entries(ASPECTS)) {
    test(name, async () => {
      const id = await sendTo('ada', 6, 'in_app', { in_app: look });
      await visit('ada');
      await shown('Hello Ada').waitFor();
      const [iframe, title] = [page.locator('iframe'), await page.locator('#title').boundingBox()];
      await eventually(() => iframe.boundingBox(), (box) => box.height > 0 && fits(box, 720, title));
      await picture(name.replaceAll(' ', '-'));
      await eventually(() => metricsOf(id), (metrics) => metrics.opened);
      await shown('Later').click();
      await iframe.waitFor({ state: 'detached' });
    });
  }

  test('a page rule keeps a message for its page', async () => {
    const id = await sendTo('ada', 3);
    await visit('ada');
    await page.waitForTimeout(1500);
    assert.equal(await page.locator('iframe').count(), 0);
    assert.equal((await metricsOf(id)).opened, undefined);
    await page.close();
    await visit('ada', '/checkout');
    await shown('For the checkout').waitFor();
    await eventually(() => metricsOf(id), (metrics) => metrics.opened);
  });

  test('a new message is pushed to an open page within a second', async () => {
    await visit('ada');
    const told = page.waitForResponse(/\/api\/v3\/sse/);
    await eventually(() => page.evaluate(() => Object.keys(localStorage).some((key) => /SSE|sse/.test(key))));
    await told;
    await page.evaluate(() => { // what the SDK listens to, listened to beside it
      globalThis.pushed = [];
      const stream = new EventSource('http://localhost:3009/api/v3/sse?userToken=YWRh&siteId=site&sessionId=1');
      stream.addEventListener('messages', ({ data }) => globalThis.pushed.push([Date.now(), JSON.parse(data).length]));
    });
    await page.waitForFunction(() => globalThis.pushed.length === 1);
    const sent = Date.now();
    const id = await sendTo('ada', 1);
    await page.waitForFunction(() => globalThis.pushed.length > 1);
    const [, [at, count]] = await page.evaluate(() => globalThis.pushed);
    assert.equal(count, 1);
    assert.ok(at - sent < 1000, `after ${at - sent} ms`);
    await shown('Hello Ada').waitFor();
    await eventually(() => metricsOf(id), (metrics) => metrics.opened);
  });

  test('the production hosts lead here, too, in Playwright', async (t) => {
    const [hosts, streams] = [/^https:..(consumer|renderer|code)[.]/, 'https://realtime.**'];
    t.after(() => Promise.all([hosts, streams].map((some) => context.unroute(some))));
    await context.route(hosts, async (route) => route.fulfill({
      response: await route.fetch({ url: route.request().url().replace(/https:..[^/]+/, FAKE) }) }));
    await context.route(streams, (route) => route.abort()); // the SDK polls then
    const id = await sendTo('ada', 1);
    await visit('ada', '/', { env: 'prod' });
    await shown('See it').click();
    await eventually(() => metricsOf(id), (metrics) => metrics.opened && metrics.clicked);
  });

  test('a message for everybody reaches an anonymous visitor', async () => {
    await call('POST', '/__parlel/seed', { ...SEED, in_app_messages: [{ id: 7, body: '<p>Sale!</p>' }] });
    await visit(null);
    await shown('Sale!').waitFor();
    await eventually(() => call('GET', '/__parlel/events'),
      ({ events }) => events.some((event) => event.name === 'viewed_content'));
  });

  test('two people get their own', async () => {
    const id = await sendTo('bob', 1);
    await visit('ada');
    await page.waitForTimeout(1000);
    assert.equal(await page.locator('iframe').count(), 0);
    await page.close();
    await visit('bob');
    await shown('Hello Bob').waitFor();
    await eventually(() => metricsOf(id), (metrics) => metrics.opened);
  });

  test('two workspaces stand side by side in one browser', async (t) => {
    const { site_id: siteId, write_key: writeKey } = await call('POST', '/__parlel/workspaces', { name: 'other' });
    const place = '/@other';
    const other = await openShop();
    t.after(async () => {
      other.close();
      await call('DELETE', '/__parlel/workspaces/other');
    });
    await call('POST', `${place}/__parlel/seed`, { ...SEED, customers: [{ id: 'ada', attributes: { name: 'Bea' } }] });
    const [id, inbox] = [await sendTo('ada', 1), await sendTo('ada', 5, 'inbox_message', { place })];
    const here = await visit('ada');
    await shown('Hello Ada').waitFor();
    await eventually(() => metricsOf(id), (metrics) => metrics.opened);
    const there = await visit('ada', '/', { origin: other.origin, siteId, writeKey });
    const read = (place_) => place_.evaluate(async () => (await globalThis.analytics.inbox('orders').messages())
      .map(({ properties }) => properties.body));
    await eventually(() => read(there), ([body]) => body === 'Bea');
    assert.deepEqual(await read(here), []);
    assert.equal(await there.locator('iframe').count(), 0);
    await there.evaluate(async () => (await globalThis.analytics.inbox('orders').messages())[0].trackClick('pay'));
    await eventually(() => metricsOf(inbox, place), (metrics) => metrics.clicked);
    const later = await sendTo('ada', 1, 'in_app', { place });
    await shown('Hello Bea').waitFor();
    await eventually(() => metricsOf(later, place), (metrics) => metrics.opened);
    assert.equal((await metricsOf(id)).clicked, undefined);
    await here.close();
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
    const entry = () => queueOf('ada').then((queue) => queue.inboxMessages[0]);
    const act = (verb, ...args) => page.evaluate(async ([name, more]) => {
      const [first] = await globalThis.analytics.inbox('orders').messages();
      await first[name](...more);
    }, [verb, args]);
    await act('markOpened');
    await eventually(entry, (seen) => seen.opened === true);
    await eventually(() => metricsOf(id), (metrics) => metrics.opened);
    await act('markUnopened');
    await eventually(entry, (seen) => seen.opened === false);
    await act('trackClick', 'pay');
    await eventually(() => metricsOf(id), (metrics) => metrics.clicked);
    await act('markDeleted');
    await eventually(entry, (seen) => seen === undefined);
  });

  test('an inbox message that expires is gone from an open page', async () => {
    const id = await sendTo('ada', 5, 'inbox_message');
    await visit('ada');
    const count = () => page.evaluate(async () => globalThis.analytics.inbox().total());
    await eventually(count, (seen) => seen === 1);
    await page.evaluate(async () => {
      const [message] = await globalThis.analytics.inbox().messages();
      await message.markOpened();
    });
    await call('PUT', '/__parlel/clock', { advance: 3599 });
    await page.waitForTimeout(500);
    assert.equal(await count(), 1);
    await call('PUT', '/__parlel/clock', { advance: 2 });
    await eventually(count, (seen) => seen === 0);
    const metrics = await eventually(() => metricsOf(id), (seen) => seen.opened);
    assert.equal(metrics.clicked, undefined);
  });
});
