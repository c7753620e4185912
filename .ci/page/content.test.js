// What somebody has written is opened on its own, on the fake's own origin: it may act on nothing.

import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { browse, call, FAKE, send } from './fake.js';

let browser;
before(async () => (browser = await browse()));
after(() => browser.close());

const HOSTILE = {
  'a script': "<script>fetch('/__parlel/reset', {method: 'POST'})</script>",
  'an event handler': `<img src="/nowhere" onerror="fetch('/__parlel/reset', {method: 'POST'})">`,
  'an SVG': `<svg onload="fetch('/__parlel/reset', {method: 'POST'})"></svg>`,
  'a form': `<form action="/__parlel/reset" method="post"><button autofocus>ok</button></form>
    <script>document.forms[0].submit()</script>`,
  'a frame': `<iframe srcdoc="<script>fetch('/__parlel/reset', {method: 'POST'})</script>"></iframe>`,
  'a refresh': '<meta http-equiv="refresh" content="0; url=/__parlel/customers">',
};

beforeEach(() => call('POST', '/__parlel/reset'));

for (const [name, body] of Object.entries(HOSTILE)) {
  for (const view of ['/e/v/', '/__parlel/deliveries/']) {
    test(`${name} in a message wipes nothing: ${view}`, async () => {
      const id = await send(body);
      const page = await browser.newPage();
      const url = FAKE + view + id + (view === '/e/v/' ? '' : '/html');
      await page.goto(url);
      if (name === 'a form') await page.keyboard.press('Enter');
      await page.waitForTimeout(300);
      assert.equal(page.url(), url);
      await page.close();
      const { deliveries } = await call('GET', '/__parlel/deliveries');
      assert.deepEqual(deliveries.map((row) => row.delivery_id), [id]);
    });
  }
}

test('links of a message still lead on, in the same window and in another', async () => {
  await send(`<a href="${FAKE}/health">here</a> <a href="${FAKE}/health" target="_blank">there</a>`);
  const [{ delivery_id: id }] = (await call('GET', '/__parlel/deliveries')).deliveries;
  const page = await browser.newPage();
  await page.goto(`${FAKE}/e/v/${id}`);
  const [popup] = await Promise.all([page.waitForEvent('popup'), page.click('text=there')]);
  await popup.waitForURL('**/health');
  await popup.close();
  await page.click('text=here');
  await page.waitForURL('**/health');
  await page.close();
  const [{ metrics }] = (await call('GET', '/__parlel/deliveries')).deliveries;
  assert.ok(metrics.clicked && metrics.opened, JSON.stringify(metrics));
});

test('a page under a name that leads here (DNS rebinding) writes nothing', async (t) => {
  const { port } = new URL(FAKE);
  const context = await browse({ args: ['--host-resolver-rules=MAP evil.example 127.0.0.1'] });
  t.after(() => context.close());
  const page = await context.newPage();
  await page.goto(`http://evil.example:${port}/health`);
  const statuses = await page.evaluate(async () => {
    const init = { method: 'POST', body: '{"userId": "1"}', headers: { authorization: 'Basic czprOg==' } };
    const paths = ['/v1/identify', '/v1/send/email', '/api/v2/entity', '/__parlel/reset'];
    return Promise.all(paths.map(async (path) => (await fetch(path, init)).status));
  });
  assert.deepEqual(statuses, [403, 403, 403, 403]);
  assert.equal((await call('GET', '/__parlel/customers')).count, 0);
});
