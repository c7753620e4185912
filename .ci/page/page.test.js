// The page, driven as a person drives it.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, beforeEach, test } from 'node:test';
import { browse, call, FAKE, send } from './fake.js';
import { liven, SEED } from './scene.js';

const require = createRequire(import.meta.url);
const AXE = await readFile(require.resolve('axe-core/axe.min.js'), 'utf8');
const SHOTS = process.env.SCREENSHOTS;

let browser, page, complaints;
before(async () => {
  browser = await browse({ viewport: { width: 1280, height: 800 } });
});
after(() => browser.close());

async function open(hash = '', place = '/') {
  await page.goto('about:blank');
  await page.goto(FAKE + place + hash);
  await page.waitForFunction(() => document.querySelector('summary').textContent !== '');
}
const see = (text, options) => page.getByText(text, options).first().waitFor();
const rows = () => page.locator('main a.row');
const press = (name) => page.getByRole('button', { name, exact: true }).click();
const identify = (id, attributes, place = '') => call('PUT', `${place}/api/v1/customers/${encodeURIComponent(id)}`, attributes);
const deliveries = async () => (await call('GET', '/__parlel/deliveries')).deliveries;

beforeEach(async () => {
  await call('DELETE', '/__parlel/workspaces');
  await call('DELETE', '/__parlel/faults');
  await call('POST', '/__parlel/seed', {});
  await page?.close();
  page = await browser.newPage();
  complaints = [];
  page.on('pageerror', (error) => complaints.push(error.stack));
  page.on('console', (message) => {
    const known = /status of 4\d\d|favicon/.test(message.text());
    if (message.type() === 'error' && !known) complaints.push(message.text());
  });
});
const clean = () => assert.deepEqual(complaints, []);

test('an empty server tells where to point a client', async () => {
  await open();
  await see('Nothing has arrived yet');
  await see(`${FAKE}/api/v1`);
  clean();
});

test('what arrives is seen within a second, with the reason why nothing happened', async () => {
  await open();
  await see('Nothing has arrived yet');
  const began = performance.now();
  await call('POST', '/api/v1/customers/1/events', { name: 'signup' });
  await see('signup');
  assert.ok(performance.now() - began < 1000, `${performance.now() - began} ms`);
  await call('DELETE', '/api/v1/customers/nobody');
  await see('nobody has this identifier', { exact: false });
  await call('GET', '/v1/nowhere').catch(() => 0);
  await see('unknown path', { exact: false });
  assert.equal(await page.locator('a.row.warn').count(), 1);
  assert.equal(await page.locator('a.row.bad').count(), 1);
  await see('dropped 1');
  clean();
});

test('a message: each way to look at it, each thing that happens next', async () => {
  const id = await liven();
  await open('#/messages');
  await page.getByText('Your order A-1001 is on its way').click();
  const inside = page.frameLocator('iframe');
  await inside.getByText('Thank you, Ada').waitFor();
  const width = () => page.locator('iframe').evaluate((frame) => frame.clientWidth);
  assert.ok(Math.abs(await width() - 375) <= 2, `a phone is ${await width()} wide`);
  await page.getByRole('link', { name: 'desktop' }).click();
  await page.waitForFunction(() => document.querySelector('iframe').clientWidth > 500);
  for (const [show, text] of [['text', 'Leith'], ['source', '<!doctype html>'], ['headers', 'subject'],
    ['data', 'message_data'], ['history', 'delivered']]) {
    await page.getByRole('link', { name: show, exact: true }).click();
    await page.locator('.detail').getByText(text).first().waitFor();
    assert.match(page.url(), new RegExp(`show=${show}`));
  }
  let [row] = (await deliveries()).filter((one) => one.delivery_id === id);
  assert.equal(row.metrics.opened, undefined, 'a preview is no open');
  for (const metric of ['opened', 'converted', 'bounced', 'spammed', 'unsubscribed']) {
    await press(metric);
    await page.waitForFunction((name) => document.querySelector('.detail').textContent
      .split('history')[1].includes(name), metric);
  }
  await page.getByRole('link', { name: 'phone' }).click();
  await press('Click as the customer');
  await page.getByText('Done').waitFor();
  [row] = (await deliveries()).filter((one) => one.delivery_id === id);
  assert.ok(row.metrics['link:1'] || row.metrics.clicked, JSON.stringify(row.metrics));
  const [popup] = await Promise.all([page.waitForEvent('popup'), page.getByText('As the customer ↗').click()]);
  await popup.close();
  clean();
});

test('links of a preview lead where they lead', async () => {
  const id = await send(`<a href="${FAKE}/health?a=1&amp;b=2" target="_blank">go</a>`);
  await open(`#/messages/${encodeURIComponent(id)}`);
  const [popup] = await Promise.all([page.waitForEvent('popup'), page.frameLocator('iframe').getByText('go').click()]);
  await popup.waitForURL(`${FAKE}/health?a=1&b=2`);
  await popup.close();
  assert.equal((await deliveries())[0].metrics.clicked, undefined);
  clean();
});

test('messages are filtered, new ones reach the filter, the newest is followed', async () => {
  await liven();
  await open('#/messages');
  await page.getByLabel('channel').selectOption('push');
  await page.waitForURL(/channel=push/);
  await see('On its way');
  await page.waitForFunction(() => document.querySelectorAll('main a.row').length === 2);
  await page.locator('#search').pressSequentially('courier', { delay: 30 });
  await page.waitForFunction(() => document.querySelectorAll('main a.row').length === 1);
  assert.match(page.url(), /channel=push&text=courier/);
  await call('DELETE', '/__parlel/faults');
  await call('POST', '/v1/send/push', { identifiers: { id: '3' }, transactional_message_id: 1, title: 'x', message: 'a courier' });
  await page.waitForFunction(() => document.querySelectorAll('main a.row').length === 2);
  await open('#/messages');
  await page.getByLabel('Follow newest').check();
  await page.locator('.detail').waitFor();
  await send('<p>fresh</p>', { subject: 'The newest of all' });
  await page.getByRole('heading', { name: 'The newest of all' }).waitFor();
  clean();
});

test('channels look like what they are', async () => {
  await liven();
  for (const [text, kind] of [['493 022', '.bubble'], ['The courier comes today', '.card']]) {
    await open('#/messages');
    await page.getByLabel('channel').selectOption(kind === '.card' ? 'push' : 'sms');
    await page.getByText(kind === '.card' ? 'On its way' : text).first().click();
    await page.locator(`.phone ${kind}`).waitFor();
    await page.locator(kind).getByText(text).waitFor();
  }
  clean();
});

test('a person with all that belongs to them', async () => {
  await liven();
  await open('#/people');
  await page.getByText('Ada Lovelace').click();
  for (const text of ['ada@example.com', 'Paying', 'token-1', 'acme', 'News', 'order_placed']) {
    await page.locator('.detail').getByText(text).first().waitFor();
  }
  await identify('1', { mood: 'splendid' });
  await page.locator('.detail').getByText('splendid').waitFor();
  const time = page.locator('.detail time').first();
  await time.hover();
  assert.match(await time.getAttribute('title'), /Z · .* ago/);
  clean();
});

test('journeys: a drawn workflow, one way through it, the clock moves it on', async () => {
  await liven();
  await open('#/journeys');
  await page.getByText('Order follow-up').click();
  await page.locator('.tile', { hasText: 'Wait until' }).getByText('3').waitFor();
  await page.locator('.detail a.row').first().click();
  await see('Journey of');
  await see('What began it');
  await press('Force exit');
  await page.locator('.facts').getByText('exited early').waitFor();
  await open('#/journeys/2');
  await page.locator('summary').click();
  await press('Freeze');
  await page.locator('summary', { hasText: '❄' }).waitFor();
  await press('+1 day');
  await page.getByRole('button', { name: /To what is due next/ }).click();
  await press('Stop, all leave');
  await page.locator('.facts').getByText('stopped').waitFor();
  await press('Start');
  await page.locator('.facts').getByText('running').waitFor();
  await call('PUT', '/__parlel/clock', { freeze: false });
  await open('#/journeys/5');
  await see('not entered');
  clean();
});

test('the journal: what was asked and answered, as curl, as a fault, as an assertion', async () => {
  await liven();
  await browser.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: FAKE });
  const copied = () => page.evaluate(() => navigator.clipboard.readText());
  await open('#/journal?status=400');
  await page.waitForFunction(() => document.querySelectorAll('main a.row').length === 1);
  await rows().first().click();
  await see('Answer');
  await press('Copy as curl');
  await see('Copied');
  assert.match(await copied(), /^curl .*\/v1\/send\/email/);
  await press('Copy as an assertion');
  await page.waitForFunction(async () => (await navigator.clipboard.readText()).includes('/assert'));
  const [, body] = /-d '(.*)'$/.exec(await copied());
  assert.equal((await call('POST', '/__parlel/assert', JSON.parse(body))).status, 'ok');
  await page.getByText('Make a fault of this').click();
  await press('Add');
  await see('0 of 0 calls');
  await call('POST', '/v1/send/email', {}).catch(() => 0);
  await see('1 of 1 calls');
  await page.getByRole('button', { name: 'Remove' }).first().click();
  clean();
});

test('webhooks: attempts, bodies, what waits', async () => {
  await liven();
  await open('#/webhooks');
  await see('webhooks waiting');
  await page.locator('.rows').evaluate((element) => { element.scrollTop = element.scrollHeight; });
  await page.locator('a.row.bad').first().click();
  await page.locator('.detail').getByText('500').first().waitFor();
  await see('delivery_id');
  await press('Send what waits');
  await see('Done');
  clean();
});

test('the state and the seed come out and go in again; a reset asks first', async () => {
  await identify('1', { plan: 'pro' });
  await open('#/settings');
  const [download] = await Promise.all([page.waitForEvent('download'), page.getByText('Save the state').click()]);
  const state = JSON.parse(await readFile(await download.path(), 'utf8'));
  const answer = (way) => page.once('dialog', (dialog) => dialog[way]());
  answer('dismiss');
  await press('Reset');
  assert.equal((await call('GET', '/__parlel/customers')).count, 1);
  answer('accept');
  await press('Reset');
  await see('Done');
  assert.equal((await call('GET', '/__parlel/customers')).count, 0);
  const upload = async (name, document) => {
    const buffer = Buffer.from(JSON.stringify(document));
    answer('accept');
    await page.locator('input[type=file]').setInputFiles({ name, mimeType: 'application/json', buffer });
    await page.waitForTimeout(300);
  };
  await upload('state.json', state);
  assert.equal((await call('GET', '/__parlel/customers')).count, 1);
  await upload('seed.json', SEED);
  assert.equal((await call('GET', '/__parlel/campaigns')).count, 2);
  clean();
});

test('one field finds people, events, messages and calls; keys do the rest', async () => {
  await liven();
  await open();
  await page.keyboard.press('/');
  await page.keyboard.type('order');
  for (const kind of ['email', 'event', 'call']) await page.locator('.kind', { hasText: kind }).first().waitFor();
  await page.waitForFunction(() => !document.querySelector('main').textContent.includes('Reset your password'));
  await page.keyboard.press('Control+A');
  await page.keyboard.type('ada love');
  await see('Ada Lovelace');
  await page.keyboard.press('Control+A');
  await page.keyboard.type('A-1001');
  await see('Your order A-1001 is on its way');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await page.locator('.detail').waitFor();
  await page.keyboard.press('Escape');
  await page.locator('.detail').waitFor({ state: 'detached' });
  await page.keyboard.press('3');
  await see('Ada Lovelace');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { name: 'Barbara Liskov' }).waitFor();
  await page.keyboard.press('?');
  await page.getByRole('status').getByText('search').waitFor();
  clean();
});

test('a person shows queue and inbox as the SDKs get them, and what becomes of them', async () => {
  const look = { priority: 2, topics: ['orders'], expires_in: 60, properties: { title: 'Paid' } };
  const contents = [{ id: 1, type: 'in_app', body: '<p>Hi</p>', in_app: look }];
  await call('POST', '/__parlel/seed', {
    customers: [{ id: '1' }], transactional: [{ id: 1, name: 'm', contents }], in_app_messages: [{ id: 7, body: 'Sale' }],
  });
  const sendBy = (channel) => call('POST', `/v1/send/${channel}`, { transactional_message_id: 1, identifiers: { id: '1' } });
  const { delivery_id: shown } = await sendBy('in_app');
  const { delivery_id: kept } = await sendBy('inbox_message');
  await open('#/people/1');
  const part = (name) => page.locator(`h3:text-is("${name}") + table`);
  const queue = await call('GET', '/__parlel/in-app?person=1');
  await part('inbox').waitFor();
  const told = await part('in-app queue').locator('pre').allTextContents();
  assert.deepEqual(told.map((text) => JSON.parse(text)), queue.inAppMessages);
  assert.deepEqual(JSON.parse(await part('inbox').locator('pre').textContent()), queue.inboxMessages[0]);
  await part('in-app queue').getByText('for everybody').waitFor();
  await call('PATCH', `/api/v1/messages/${kept}?siteId=s`, { opened: true });
  await part('inbox').getByText('"opened": true').waitFor();
  await call('POST', `/api/v1/logs/queue/${shown}?siteId=s`, {});
  await page.waitForFunction(() => document.querySelectorAll('h3 + table pre').length === 2);
  await call('PUT', '/__parlel/clock', { advance: 61 });
  await part('inbox').waitFor({ state: 'detached' });
  assert.equal(await part('in-app queue').locator('tr').count(), 1);
  await call('DELETE', '/__parlel/customers/1');
  clean();
});

test('two workspaces stand side by side', async () => {
  await call('POST', '/__parlel/workspaces', { name: 'worker-1' });
  await identify('1', { name: 'Default Dora' });
  await identify('1', { name: 'Worker Will' }, '/@worker-1');
  const other = await browser.newPage();
  await open('#/people');
  await other.goto(`${FAKE}/@worker-1/#/people`);
  await see('Default Dora');
  await other.getByText('Worker Will').waitFor();
  assert.equal(await other.getByText('Default Dora').count(), 0);
  await identify('2', { name: 'Late Lena' }, '/@worker-1');
  await other.getByText('Late Lena').waitFor();
  await page.locator('#workspace').selectOption('worker-1');
  await page.waitForURL(/@worker-1\/#\/people/);
  await see('Late Lena');
  await other.close();
  clean();
});

test('a hundred thousand people scroll', async () => {
  const customers = [];
  for (let number = 0; number < 100000; number += 1) customers.push({ id: `p${number}` });
  await call('POST', '/__parlel/seed', { customers });
  await open('#/people');
  await see('p99999');
  await page.locator('.rows').evaluate((element) => { element.scrollTop = element.scrollHeight; });
  await see('p0', { exact: true });
  await page.locator('.rows').evaluate((element) => { element.scrollTop = element.scrollHeight / 2; });
  await see('p49999');
  assert.ok(await rows().count() < 60);
  await page.locator('#search').fill('p777');
  await see('p77799', { exact: true });
  clean();
});

const HOSTILE = {
  script: "<script>parent.hacked = top.hacked = 1; fetch('/__parlel/reset', {method: 'POST'})</script>",
  onerror: '<img src="/x" onerror="parent.hacked = 1">',
  form: '<form action="/__parlel/reset" method="post" target="_top"><input type="submit" autofocus></form>',
  refresh: '<meta http-equiv="refresh" content="0; url=/health">',
  base: '<base href="https://evil.example/" target="_top"><a href="x">y</a>',
  svg: '<svg onload="parent.hacked = 1"><script>parent.hacked = 1</script></svg>',
  cover: '<style>* { position: fixed; inset: -9999px; z-index: 2147483647; background: red }</style><p>x</p>',
  large: `<p>{% for i in (1..1900) %}${'large '.repeat(170)}{% endfor %}</p>`,
};
for (const [name, body] of Object.entries(HOSTILE)) {
  test(`a hostile message does no harm: ${name}`, async () => {
    const id = await send(body, { subject: `${name} \u202egnol <img src=x onerror=hacked=1>` });
    await open(`#/messages/${encodeURIComponent(id)}`);
    await see('⟨U+202E⟩', { exact: false });
    await page.locator('iframe').waitFor();
    await page.waitForTimeout(name === 'large' ? 1500 : 400);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.match(page.url(), /#\/messages\//);
    const { width, height } = await page.locator('iframe').boundingBox();
    assert.ok(width < 500 && height < 800);
    await page.getByRole('link', { name: 'source' }).click();
    await page.locator('.detail pre').first().waitFor();
    assert.equal((await deliveries()).length, 1);
    assert.equal((await deliveries())[0].metrics.opened, undefined);
  });
}

test('names full of tricks are shown as text', async () => {
  const name = '<b onmouseover=hacked=1>x</b>\u202e\u2066evil';
  await identify('<i>1</i>', { name, 'a<u>b': '<script>hacked=1</script>' });
  await call('POST', `/api/v1/customers/${encodeURIComponent('<i>1</i>')}/events`, { name: '<img src=x onerror=hacked=1>' });
  await open('#/people');
  await rows().first().click();
  await page.locator('.detail h2').getByText('<b onmouseover=hacked=1>x</b>⟨U+202E⟩⟨U+2066⟩evil').waitFor();
  assert.equal(await page.locator('.detail :is(b, i, u, img, script):not(.what *)').count(), 0);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  clean();
});

const VIEWS = ['', '#/messages', '#/messages/BEST', '#/messages/BEST?show=desktop', '#/messages/BEST?show=headers',
  '#/messages/BEST?show=data', '#/messages/BEST?show=history', '#/people', '#/people/1', '#/journeys', '#/journeys/2',
  '#/?text=order', '#/journeys/2/JOURNEY', '#/journal', '#/journal/CALL', '#/webhooks', '#/webhooks/REPORT', '#/faults', '#/settings'];

for (const colorScheme of ['light', 'dark']) {
  for (const [width, height] of [[1280, 800], [375, 740], [320, 640]]) {
    test(`every view, ${colorScheme}, ${width} wide: nothing serious for axe, nothing beside the window`, async () => {
      const best = await liven();
      const newest = async (list) => (await call('GET', `/__parlel/${list}?order=newest&limit=1`))[list][0];
      const ids = {
        BEST: encodeURIComponent(best), JOURNEY: (await newest('journeys')).id, CALL: (await newest('requests')).id,
        REPORT: (await newest('webhooks')).event_id,
      };
      await page.setViewportSize({ width, height });
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      for (const view of VIEWS) {
        const hash = view.replace(/BEST|JOURNEY|CALL|REPORT/, (word) => ids[word]);
        await open(hash);
        await page.waitForFunction(() => document.querySelector('main a.row, main table, main pre, main .empty'));
        await page.waitForTimeout(150);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `${view} is ${wide} pixels too wide`);
        await page.evaluate(AXE);
        const { violations } = await page.evaluate(() => axe.run(document, { iframes: false }));
        const serious = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
        assert.deepEqual(serious.map(({ id, nodes }) => `${view} ${id}: ${nodes[0].html.slice(0, 200)} ${nodes[0].failureSummary}`), []);
        if (SHOTS) {
          const name = (view.replace(/\/(BEST|JOURNEY|CALL|REPORT|\d)/g, '-one').replace(/\W+/g, '-').replace(/^-|-$/g, '') || 'live');
          await page.screenshot({ path: `${SHOTS}/${name}-${colorScheme}-${width}.png` });
        }
      }
      clean();
    });
  }
}
